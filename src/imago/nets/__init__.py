"""Networks that know shapes and nothing of losses."""
