"""The settings of REST framework and drf-spectacular that no environment variable changes.

https://www.django-rest-framework.org/api-guide/settings/,
https://drf-spectacular.readthedocs.io/en/latest/settings.html
"""

REST_FRAMEWORK: dict[str, object] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["messaging.api.authentication.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["messaging.api.permissions.HasScope"],
    "DEFAULT_THROTTLE_CLASSES": ["messaging.api.throttling.CallerThrottle"],
    "DEFAULT_PARSER_CLASSES": ["messaging.api.parsers.StrictJSONParser"],
    # For negotiation and the document: answers are rendered from records (messaging/api/answers.py).
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "messaging.api.negotiation.SingleTypeNegotiation",
    "DEFAULT_FILTER_BACKENDS": ["messaging.api.filters.QueryFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "messaging.api.schema.ApiSchema",
    "EXCEPTION_HANDLER": "messaging.api.problems.problem_handler",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,
    "FORMAT_SUFFIX_KWARG": None,
}

# The OpenAPI document
SPECTACULAR_SETTINGS: dict[str, object] = {
    "TITLE": "Messages",
    "VERSION": "0.1.0",
    "DESCRIPTION": "Send, read, mark and delete messages.\n\n"
    "Every mailbox has a `version` that rises with each change. A message's `seq` is the version at which it arrived, "
    "so `seq` is commit order, and `ETag` names the version. Each path answers with and without its trailing slash; "
    "query parameters and fields that a call does not know are refused. Every refusal is a problem document (RFC 9457) "
    "with a stable `code`, whatever its cause: also 404 `unknown_path` for a path that leads nowhere, and 405 "
    "`method_not_allowed` for a method that a path does not have.",
    "CONTACT": {"name": "Messages REST API contributors"},
    "LICENSE": {"name": "MIT", "identifier": "MIT"},
    "OAS_VERSION": "3.1.1",
    "TAGS": [
        {"name": "Messages", "description": "Send, list, get, mark and delete messages."},
        {"name": "Mailboxes", "description": "All the messages of one recipient: the version and the exact counts."},
        {"name": "Live", "description": "Hear of changes at once. Served by the live process, a port of its own."},
        {"name": "Health", "description": "For monitors and load balancers; no key needed."},
    ],
    # Each start runs the checks of a deployment, and would generate the document for this one. `make openapi` does.
    "ENABLE_DJANGO_DEPLOY_CHECK": False,
    # The document and its pages need no key, and load nothing from elsewhere.
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {
        "deepLinking": True,
        "persistAuthorization": True,
        "displayRequestDuration": True,
        "defaultModelsExpandDepth": 0,
        "tryItOutEnabled": True,
    },
    "SORT_OPERATION_PARAMETERS": False,
    "SORT_OPERATIONS": False,
    "COMPONENT_SPLIT_PATCH": False,
    "PREPROCESSING_HOOKS": ["messaging.live.urls.add_live_endpoints"],
    "POSTPROCESSING_HOOKS": ["messaging.api.schema.complete"],
}
