"""The migrations, one module each, found by Alembic."""
