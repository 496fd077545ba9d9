"""OneShotBlog: handlers that take mail, a model that stores posts and writes pages, and templates for both."""
