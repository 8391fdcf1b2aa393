"""The routes of the API, each with and without its trailing slash: a redirect would lose the body of a POST."""

from rest_framework.routers import SimpleRouter

from messaging.api.mailboxes import ChangesViewSet, MailboxViewSet
from messaging.api.views import MessageViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("messages", MessageViewSet, basename="message")
router.register("mailbox", MailboxViewSet, basename="mailbox")
router.register("changes", ChangesViewSet, basename="changes")

urlpatterns = router.urls
