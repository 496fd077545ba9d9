"""States through Django's ORM, in the database of a Django project.

    # config/settings.py
    os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
    django.setup()

    # config/boot.py
    from app.model.django_store import DjangoStorage
    Router.STATE_STORE = DjangoStorage()

In a Django app of your own the model stands in its models.py, `Meta` without ``app_label``, and ``manage.py migrate``
makes the table. `docs/databases.md` tells how handlers use the other models.
"""

from django.db import close_old_connections, connection, models

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest, storable


class Conversation(models.Model):
    id = models.CharField(primary_key=True, max_length=64)
    key = models.TextField()
    sender = models.TextField()
    state = models.TextField()

    class Meta:
        app_label = "lamson"


class DjangoStorage(StateStorage):
    def prepare(self):
        if Conversation._meta.db_table not in connection.introspection.table_names():
            with connection.schema_editor() as editor:
                editor.create_model(Conversation)

    def get(self, key, sender):
        state = self.row(key, sender).values_list("state", flat=True).first()
        return ROUTE_FIRST_STATE if state is None else state

    def set(self, key, sender, state):
        if state == ROUTE_FIRST_STATE:
            self.row(key, sender).delete()
        else:
            row = {"key": storable(key), "sender": storable(sender), "state": state}
            Conversation.objects.update_or_create(id=digest(key, sender).hex(), defaults=row)

    def clear(self):
        Conversation.objects.all().delete()

    def row(self, key, sender):
        # Django does this for each web request: connections that were lost, or are too old, are made anew.
        if not connection.in_atomic_block:
            close_old_connections()
        return Conversation.objects.filter(id=digest(key, sender).hex())
