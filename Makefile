# Names for what the README's commands do; tools/ has the scripts.
.PHONY: demo check fresh lint unit sim lab bench docs pyz deb deb-check clean kernel-patch-check

demo:    ; tools/demo
check:   ; tools/check
fresh:   ; python3 -m tools.fresh
unit:    ; tools/setup dev && .venv/bin/python -m pytest tests/unit
sim:     ; tools/setup dev && .venv/bin/python -m pytest tests/sim
lab:     ; tools/setup dev && .venv/bin/python -m pytest tests/lab
kernel-patch-check: ; tools/setup dev && .venv/bin/python -m tools.patch_check '$(DIR)'
bench:   ; tools/setup dev && .venv/bin/python -m tools.bench --json bench.json && .venv/bin/python -m tools.transactions
lint:    ; tools/setup dev && .venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy
docs:    ; tools/setup docs && .venv/bin/python -m tools.docs build dist/docs
pyz:     ; tools/setup dev && .venv/bin/python -m tools.pyz
deb:     ; python3 -m tools.deb
deb-check: ; python3 -m tools.deb_check
clean:   ; rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist bench.json rcdrv.pyz
