"""Keys may have the scope `metrics`."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("messaging", "0003_access_and_retries")]

    operations = [
        migrations.RemoveConstraint(model_name="apikey", name="api_key_scopes_known"),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("scopes__contained_by", ["send", "read", "manage", "metrics"]), ("scopes__len__gte", 1)
                ),
                name="api_key_scopes_known",
            ),
        ),
    ]
