from config import settings
from lamson.routing import Router
from lamson.server import Relay
from lamson import view
from mako.lookup import TemplateLookup
import logging
import logging.config

logging.config.fileConfig("config/test_logging.conf")

# the tests need "lamson log"
settings.relay = Relay(host=settings.relay_config['host'], port=settings.relay_config['port'], debug=0)

settings.receiver = None

Router.defaults(**settings.router_defaults)
Router.load(settings.handlers)
Router.RELOAD = False
Router.LOG_EXCEPTIONS = False

view.LOADER = TemplateLookup(**settings.template_config)
