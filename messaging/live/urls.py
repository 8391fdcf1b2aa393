"""The routes that the live process serves. Each answers with and without its trailing slash."""

from rest_framework.routers import SimpleRouter

from messaging.live.views import LiveViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("mailbox", LiveViewSet, basename="live")

urlpatterns = router.urls
