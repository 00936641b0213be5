from django.db import migrations

import smartgrid.fields


class Migration(migrations.Migration):

    dependencies = [
        ('schedules_app', '0003_as_the_api_lists_them'),
    ]

    operations = [
        migrations.AlterField(
            model_name='schedule',
            name='schedule',
            field=smartgrid.fields.JsonTextField(blank=True, default=dict),
        ),
    ]
