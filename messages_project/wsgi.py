"""The WSGI application, for a server of one's own choice: `python -m messages_project` is the usual way to serve."""

from django.core.wsgi import get_wsgi_application

from messages_project import env
from messages_project.closing import closing_connections
from messages_project.public_url import below_public_url

env.default(DJANGO_SETTINGS_MODULE="messages_project.settings")

application = closing_connections(below_public_url(get_wsgi_application()))
