"""Train, measure and describe the models that tapstudy embeds: what only making them needs."""
