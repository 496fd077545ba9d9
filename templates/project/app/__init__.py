"""Your application: handlers that take mail, models that store things, templates that mail is written with."""
