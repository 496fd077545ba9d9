"""The commands that make a project and look into it: gen, routes, syncdb and web. See `lamson.commands`."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from lamson.args import Port
from lamson.terminal import no_project, refuse, refusing


def gen_command(project: str, FORCE: bool = False) -> None:
    """Writes a new project, ready to start, with a handler and its tests.

    A project that is there already is refused. With -FORCE it gets the files that it has not; no file is ever
    overwritten.

    Options:
        -project NAME: the folder to make
        -FORCE: fill up a folder that is there already
    """
    from importlib.resources import as_file, files

    if not project:
        refuse("-project needs a name")
    if os.path.lexists(project) and not FORCE:
        refuse(f"{project} is there already. With -FORCE it gets the files that are missing")
    try:
        with as_file(files("lamson.templates") / "project") as template:
            kept = _copy_missing(str(template), project)
    except OSError as error:
        refuse(f"cannot write {error.filename}: {error.strerror}")
    for path in kept:
        print(f"Kept {path}, which was there already.")
    print(f"The project {project} is ready. Next:\n\n    cd {project}\n    lamson start\n    nosetests\n")


def _copy_missing(template: str, project: str) -> list[str]:
    """Copy the files of `template` that `project` does not have. Returns those it has."""
    import shutil

    kept = []
    for folder, subfolders, names in os.walk(template):
        subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
        target = os.path.normpath(os.path.join(project, os.path.relpath(folder, template)))
        os.makedirs(target, exist_ok=True)
        for name in sorted(names):
            path = os.path.join(target, name)
            try:
                # "x" makes the file, and fails when somebody has made it since.
                with open(os.path.join(folder, name), "rb") as source, open(path, "xb") as copy:
                    shutil.copyfileobj(source, copy)
            except FileExistsError:
                kept.append(path)
    return kept


def routes_command(path: str = ".", test: str | None = None, TRAILING: Sequence[str] = ("config.testing",)) -> None:
    """Shows the routes in the order in which they are tried, and which ones take an address.

    Exits with 1 when no route takes the address.

    Options:
        -path DIR: the folder to import from
        -test ADDRESS: the address to try
        -- MODULE ...: modules that load the handlers, or handlers
    """
    import importlib
    import importlib.util

    from lamson import utils
    from lamson.routing import Router, lamson_setting

    if not os.path.isdir(path):
        refuse(f"there is no folder {path}")
    sys.path.insert(0, os.path.abspath(path))
    if "config.testing" in TRAILING and importlib.util.find_spec("config") is None:
        no_project(os.path.abspath(os.path.join(path, "config")))
    for module in TRAILING:
        with refusing(), utils.explained(f"cannot import {module}: "):
            importlib.import_module(module)

    def show(functions: list, captures: dict) -> None:
        for func in functions:
            words = [f"{func.__module__}.{func.__name__}"]
            words += [word for word in ("stateless", "nolocking") if lamson_setting(func, word)]
            print("   ", *words, *(f"{name}={value!r}" for name, value in captures.items()))

    print("Routes, in the order in which they are tried:")
    for format in Router.ORDER:
        print(f"\n  {format}")
        show(Router.REGISTERED[format][1], {})
    if test:
        matches = list(Router.match(test))
        if not matches:
            refuse(f"no route takes {test}")
        print(f"\n{test} is taken by:\n")
        for functions, captures in matches:
            show(functions, captures)


def syncdb_command() -> None:
    """Makes the tables that are missing in the project's database: those of app/model, and Lamson's own.

    The database is that of database_config in config/settings.py. Of the tables that are there already, those of
    app/model stay as they are, and Lamson's own are brought up to date when an older Lamson made them.
    """
    import importlib
    import importlib.util
    import pkgutil

    from lamson import schema, utils
    from lamson.database import SQLAlchemyConfirmationStorage, SQLAlchemyStorage

    with refusing(), utils.explained():
        settings = utils.import_settings(False)
        # A table is known once the module that has it is imported.
        if importlib.util.find_spec("app") and importlib.util.find_spec("app.model"):
            for module in pkgutil.iter_modules(importlib.import_module("app.model").__path__, "app.model."):
                importlib.import_module(module.name)
        if getattr(settings, "database_config", None) is None:
            raise utils.ServerError("config/settings.py has no database_config.")
        database = utils.configure_database(settings.database_config, also_create=True)
        tables = {schema.versions.name, *(database.metadata.tables if database.metadata is not None else ())}
        for storage in SQLAlchemyStorage(database), SQLAlchemyConfirmationStorage(database):
            storage.prepare()
            tables.add(storage.table.name)
    print(f"{database.engine.url.render_as_string()} has the tables: {', '.join(sorted(tables))}.")


def web_command(basedir: str = ".", port: Port = 8888, host: str = "127.0.0.1") -> None:
    """Serves the files of a folder to browsers on this machine, until ctrl-c.

    Options:
        -basedir DIR: the folder
        -port NUMBER: the port to listen on
        -host HOST: the address to listen on
    """
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if not os.path.isdir(basedir):
        refuse(f"there is no folder {basedir}")
    try:
        server = ThreadingHTTPServer((host, port), partial(SimpleHTTPRequestHandler, directory=basedir))
    except OSError as error:
        refuse(f"cannot listen on {host}:{port}: {error.strerror}")
    with server:
        print(f"Serving {os.path.abspath(basedir)} at http://{host}:{server.server_port}/", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
