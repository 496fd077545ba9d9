"""The package's metadata. `pip install .` installs Lamson, `pip install -e '.[test]'` installs it for working on it."""

import os
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

# What examples/stores are written with.
STORES = [
    "Django>=5.1",
    "FormEncode>=2.1.1",
    "pymemcache>=4.0",
    "pymongo>=4.9",
    "redis>=5.0",
    "SQLObject>=3.12",
    "web.py>=0.70",
]


def version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (HERE / "lamson/__init__.py").read_text(), re.MULTILINE)
    assert found, "lamson/__init__.py has to say __version__"
    return found.group(1)


def template_files() -> list[str]:
    """Every file of the project that `lamson gen` copies, dot files too, which setuptools' patterns leave out."""
    top = HERE / "templates"
    return [
        os.path.relpath(os.path.join(folder, name), top)
        for folder, _, names in os.walk(top / "project")
        if "__pycache__" not in folder
        for name in names
    ]


setup(
    name="lamson",
    version=version(),
    description="Lamson, the Python mail server: write e-mail applications the way you write web applications",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=["lamson", "lamson.handlers", "lamson.templates"],
    package_dir={"lamson.templates": "templates"},
    package_data={"lamson": ["py.typed"], "lamson.templates": template_files()},
    install_requires=[
        "aiosmtpd>=1.4.5",
        "chardet>=5.2",
        "dnspython>=2.4",
        "flufl.bounce>=5.0.1",
        "html-text>=0.6",
        "jinja2>=3.1.5",
        "nose2>=0.14",
        "python-daemon>=3.0.1",
        "sbclassifier>=0.1.1",
        "SQLAlchemy>=2.0.31",
        "uvloop>=0.21; sys_platform != 'win32' and implementation_name == 'cpython'",
    ],
    extras_require={
        "broker": ["kombu[redis]>=5.5"],
        "html": ["css-inline>=0.17", "markdown>=3.6"],
        "mako": ["mako>=1.3"],
        "postgresql": ["psycopg[binary]>=3.2"],
        "spelling": ["pyenchant>=3.2"],
        "stores": STORES,
        "test": [
            "css-inline>=0.17",
            "dkimpy>=1.1",
            "html5lib>=1.1",
            "hypothesis>=6.100",
            "kombu[redis]>=5.5",
            "mako>=1.3",
            "markdown>=3.6",
            "nh3>=0.2.20",
            "psycopg[binary]>=3.2",
            "PyMySQL>=1.1",
            "pytest>=8.0",
            "pytest-mock>=3.12",
            *STORES,
            "nx-27017>=0.8",
        ],
        "check": ["mypy>=1.10", "ruff>=0.6"],
    },
    entry_points={
        "console_scripts": [
            "lamson = lamson.__main__:main",
            "nosetests = lamson.nosetests:main",
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Communications :: Email",
        "Topic :: Communications :: Email :: Mail Transport Agents",
    ],
)
