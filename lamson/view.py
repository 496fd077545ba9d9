"""Mail from templates: `respond` renders a template or two into a `MailResponse` that is ready to send.

`LOADER` is any object with ``get_template(name)``: a Jinja2 ``Environment``, a Mako ``TemplateLookup``, or your own.
The boot file of a project sets it, for Jinja2 like this:

    view.LOADER = view.jinja2_loader(**settings.template_config)

and a handler then writes:

    mail = view.respond(locals(), "mail/welcome.msg", To="%(address)s@%(host)s",
                        From="noreply@%(host)s", Subject="Welcome, %(name)s")
    relay.deliver(mail)

Nothing here imports a template engine except `jinja2_loader`, when it is called. Errors of the engine (a template
that does not exist, a syntax error in one) are passed on as they are, since they name the file and the line; what does
not exist also gets the folders in which it was looked for.
"""

import importlib.util
import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lamson.errors import MisuseError
from lamson.mail import MailResponse

if TYPE_CHECKING:
    import jinja2

LOADER: Any = None
"""Where templates come from: anything with ``get_template(name)``. None until a boot file sets it."""


def load(template: str) -> Any:
    """Returns the template called `template`, as `LOADER` knows it.

    Raises `MisuseError` when there is no `LOADER`, and the engine's error, with the folders that were searched in its
    text, when there is no such template.
    """
    if LOADER is None:
        raise MisuseError(
            f"Cannot load the template {template!r}: lamson.view.LOADER is not set. Set it in config/boot.py and "
            "config/testing.py, for example: view.LOADER = view.jinja2_loader(dir='app', module='templates')"
        )
    try:
        return LOADER.get_template(template)
    except Exception as error:
        if type(error).__name__ in _NOT_FOUND:
            _tell_where(error, [folder for folder in _folders(LOADER) if folder not in str(error)])
        raise


def render(variables: Mapping[str, Any], template: str) -> str:
    """Returns the text that the template called `template` makes of `variables`."""
    found = load(template)
    # Mako's render() gives bytes when an output encoding is set, and takes a positional argument for one of the
    # template's own; its render_unicode() always gives text and always takes keywords.
    if hasattr(found, "render_unicode"):
        return found.render_unicode(**variables)
    if _takes_positional(found.render):
        return found.render(variables)
    return found.render(**variables)


def respond(variables: Mapping[str, Any], Body: str | None = None, Html: str | None = None, **kwd: Any) -> MailResponse:
    """Returns a `MailResponse` whose text is the template `Body` and whose HTML is the template `Html`, or just one.

    Everything in `kwd` goes to `MailResponse` (``To``, ``From``, ``Subject``). Text in it is %-formatted with
    `variables`, so that a percent sign for itself is written ``%%``:

        respond({"name": "Joe"}, "hello.msg", Subject="100%% for %(name)s")     # Subject: 100% for Joe

    What a stranger wrote goes in as a variable, ``To="%(address)s"``, and never as the text itself: in
    ``To=message.route_from`` somebody whose address is ``50%off@example.com`` would be an error.

    Raises `MisuseError` when neither template is named, or when a text in `kwd` cannot be formatted.
    """
    if not (Body or Html):
        raise MisuseError("view.respond needs a template to render: give it Body='NAME.msg', Html='NAME.html' or both.")

    response = MailResponse(**{keyword: _format(keyword, value, variables) for keyword, value in kwd.items()})
    if Body:
        response.Body = render(variables, Body)
    if Html:
        response.Html = render(variables, Html)
    return response


def attach(
    msg: MailResponse,
    variables: Mapping[str, Any],
    template: str,
    filename: str | None = None,
    content_type: str | None = None,
    disposition: str | None = None,
) -> None:
    """Renders `template` and attaches the text to `msg`; the other arguments are those of `MailResponse.attach`."""
    msg.attach(filename=filename, content_type=content_type, data=render(variables, template), disposition=disposition)


def jinja2_loader(dir: str, module: str) -> "jinja2.Environment":
    """Returns a Jinja2 environment for a `LOADER`: the templates in the folder `module` of the package `dir`.

    Variables are escaped in ``.html`` templates and left alone in all others, where ``&lt;`` would be read as it
    stands. The newline at the end of a template stays, because a text mail ends with one. A template that changes
    on disk is read again. Raises `MisuseError` when Jinja2 is not installed or there is no such folder.
    """
    try:
        import jinja2
    except ImportError as missing:
        raise MisuseError("Jinja2 templates need Jinja2: pip install jinja2") from missing

    package = importlib.util.find_spec(dir)
    places = (package.submodule_search_locations if package else None) or ()
    folders = [folder for place in places if os.path.isdir(folder := os.path.join(place, module))]
    if not folders:
        raise MisuseError(
            f"There are no templates: the package {dir!r} has no folder {module!r}. "
            "Make that folder, or change template_config in config/settings.py."
        )
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),  # it says where it has looked for a template that is missing
        autoescape=jinja2.select_autoescape(["html"]),
        keep_trailing_newline=True,
    )


# What Jinja2 and Mako raise for a template that is not there.
_NOT_FOUND = ("TemplateNotFound", "TopLevelLookupException")


def _folders(loader: Any) -> list[str]:
    """The folders in which a loader looks, as far as it tells: Mako's lookup and Jinja2's loaders do."""
    if hasattr(loader, "package_name"):
        return [f"{loader.package_path} of the package {loader.package_name}"]
    folders = [*getattr(loader, "directories", ()), *getattr(loader, "searchpath", ())]
    for inner in (getattr(loader, "loader", None), *getattr(loader, "loaders", ())):
        if inner is not None:
            folders += _folders(inner)
    return [os.fspath(folder) for folder in folders]


def _tell_where(error: Any, folders: list[str]) -> None:
    if folders:
        text = f"{error}; searched: {', '.join(folders)}"
        error.args = (text,)
        if hasattr(error, "message"):  # which is what Jinja2's error shows
            error.message = text


def _takes_positional(render: Any) -> bool:
    """Whether `render` can be given the variables as one argument, as Jinja2's can, or only by keyword."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(
        parameter.kind in (*positional, inspect.Parameter.VAR_POSITIONAL)
        for parameter in inspect.signature(render).parameters.values()
    )


def _format(keyword: str, value: Any, variables: Mapping[str, Any]) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return value % variables
    except (KeyError, ValueError, TypeError) as wrong:
        reason = f"there is no variable {wrong}" if isinstance(wrong, KeyError) else str(wrong)
        raise MisuseError(
            f"view.respond cannot format {keyword}={value!r}: {reason}. The variables are "
            f"{', '.join(sorted(variables)) or 'none'}; write %% for a percent sign."
        ) from wrong
