from config import settings
from lamson.routing import Router, ShelveStorage
from lamson.server import Relay, SMTPReceiver
from lamson import view, queue
from mako.lookup import TemplateLookup
import logging
import logging.config

logging.config.fileConfig("config/logging.conf")

settings.relay = Relay(host=settings.relay_config['host'], port=settings.relay_config['port'], debug=1)

settings.receiver = SMTPReceiver(settings.receiver_config['host'], settings.receiver_config['port'])

Router.defaults(**settings.router_defaults)
Router.STATE_STORE = ShelveStorage(settings.states)
Router.load(settings.handlers)
Router.RELOAD = True
Router.UNDELIVERABLE_QUEUE = queue.Queue("run/undeliverable")

view.LOADER = TemplateLookup(**settings.template_config)
