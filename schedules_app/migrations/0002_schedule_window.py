from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('schedules_app', '0001_initial'),
        ('sites_app', '0002_desired_state'),
    ]

    operations = [
        # Whatever was planned before there was a window was put down at once; those that are not in it are
        # taken out by the next roll.
        migrations.AddField(
            model_name='schedule',
            name='is_listed',
            field=models.BooleanField(default=True, editable=False),
        ),
        migrations.AlterField(
            model_name='schedule',
            name='is_listed',
            field=models.BooleanField(default=False, editable=False),
        ),
        migrations.AddIndex(
            model_name='schedule',
            index=models.Index(fields=['valid_on'], name='schedule_day'),
        ),
        migrations.AddIndex(
            model_name='schedule',
            index=models.Index(fields=['is_listed', 'valid_on'], name='schedule_window'),
        ),
    ]
