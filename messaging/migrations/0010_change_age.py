"""A B-tree in place of BRIN for the age of changes.

Marks, deletions and `/changes` wait while it is built: about a second for two million rows of the log.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("messaging", "0009_observations")]

    operations = [
        migrations.RemoveIndex(model_name="change", name="change_age"),
        migrations.AddIndex(model_name="change", index=models.Index(fields=["created_at"], name="change_age")),
    ]
