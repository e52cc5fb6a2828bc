#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Try several plans from the same starting point, keep the best.

Data is loaded once, in one sandbox. Five copies of it, with the data in memory, each try to predict
the last quarter of a series in a way of their own. The sandbox goes on as the copy that was best;
nothing of the other four is left.

Needs a running daemon (`build/podflare serve`) at http://127.0.0.1:7070 or PODFLARE_HOSTD_URL, and
the SDK: PYTHONPATH=sdk/python python3 examples/fork.py
"""

import time
from concurrent.futures import ThreadPoolExecutor

from podflare import Sandbox

# Two years of weekly sales: a trend, a season of a quarter, and noise that is the same every time.
LOAD = """
    import math, random
    noise = random.Random(42)
    sales = [200 + 1.5 * week + 40 * math.sin(week * math.tau / 13) + noise.gauss(0, 5)
             for week in range(104)]
    known, future = sales[:78], sales[78:]
    print(f"{len(sales)} weeks of sales, {len(known)} of them known to the plans")
"""

PLANS = {
    "the mean of all": """
        guess = [sum(known) / len(known)] * len(future)
    """,
    "the last value again": """
        guess = [known[-1]] * len(future)
    """,
    "a straight line": """
        n = len(known)
        mid, mean = (n - 1) / 2, sum(known) / n
        slope = (sum((i - mid) * (y - mean) for i, y in enumerate(known))
                 / sum((i - mid) ** 2 for i in range(n)))
        guess = [mean + slope * (n + i - mid) for i in range(len(future))]
    """,
    "a quarter ago": """
        guess = [known[-13 + i % 13] for i in range(len(future))]
    """,
    "a quarter ago, plus the growth of a quarter": """
        growth = (sum(known[-13:]) - sum(known[-26:-13])) / 13
        guess = [known[-13 + i % 13] + growth * (1 + i // 13) for i in range(len(future))]
    """,
}

SCORE = """
error = sum(abs(a - b) for a, b in zip(guess, future)) / len(future)
with open("/home/user/forecast.csv", "w") as f:
    for week, value in enumerate(guess, 78):
        f.write(f"{week},{value:.1f}\\n")
print(error)
"""


def main() -> None:
    with Sandbox() as s:
        print(s.run_code(LOAD).stdout, end="")

        start = time.perf_counter()
        with s.fork(len(PLANS)) as copies:
            took = (time.perf_counter() - start) * 1000
            pause = "" if copies.pause_us is None else f", pause {copies.pause_us / 1000:.1f} ms"
            print(f"\n{len(copies)} copies of the sandbox in {took:.0f} ms{pause}\n")

            def attempt(copy: Sandbox, plan: str) -> float:
                copy.run_code(plan)
                return float(copy.run_code(SCORE).stdout)

            with ThreadPoolExecutor(len(PLANS)) as pool:
                errors = list(pool.map(attempt, copies, PLANS.values()))
            best = errors.index(min(errors))
            for name, error in zip(PLANS, errors):
                mark = "  <- best" if error == errors[best] else ""
                print(f"  off by {error:6.1f} on average: {name}{mark}")

            print(
                f"\nfiles that the best copy has and the sandbox has not: {s.diff(copies[best])['added']}"
            )
            s.merge_into(copies[best])

        # The sandbox is the best copy now: its variables and its files are here.
        print("\nfirst lines of the forecast:")
        print(s.run_code("head -n 3 /home/user/forecast.csv", "bash").stdout, end="")
        print(s.run_code("print(f'variables are here, too: {len(guess)} values')").stdout, end="")


if __name__ == "__main__":
    main()
