# Plain variables; config/boot.py makes what the server needs of them.

relay_config = {'host': 'localhost', 'port': 8825}

receiver_config = {'host': 'localhost', 'port': 8823}

handlers = ['app.handlers.desk', 'app.handlers.notes', 'lamson.handlers.log']

router_defaults = {
    'host': 'support\\.example\\.com',
    'ticket_id': '[a-z0-9]+',
    'note': r'[a-z0-9\.]+',
}

template_config = {'directories': ['app/templates'], 'module_directory': 'run/mako'}

states = "run/states.db"
confirms = "run/confirms"
