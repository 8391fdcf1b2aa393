"""What jobs have found last, for /metrics, the admin and `doctor`."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("messaging", "0008_changes")]

    operations = [
        migrations.CreateModel(
            name="Observation",
            fields=[
                ("name", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("value", models.BigIntegerField()),
                ("observed_at", models.DateTimeField()),
            ],
        ),
    ]
