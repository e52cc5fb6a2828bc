#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A notebook without a notebook: real data goes in, tables and a plot come back.

The physical facts of the planets (examples/data/planets.csv, from a fact sheet of NASA) are uploaded
into a sandbox with pandas and matplotlib, and looked at in steps, as a model or a person would: each
step uses the variables of the one before. The last one shows Kepler's third law and saves its plot.

Needs a running daemon (`build/podflare serve`) at http://127.0.0.1:7070 or PODFLARE_HOSTD_URL, the
template python-datasci (`make templates`), and the SDK:

    PYTHONPATH=sdk/python python3 examples/data_analysis.py [planets.png]
"""

import sys
from pathlib import Path

from podflare import ExecResult, Sandbox

DATA = Path(__file__).resolve().parent / "data" / "planets.csv"

LOOK = """
    planets = pd.read_csv("planets.csv", index_col="planet")
    planets[["mass_e24kg", "diameter_km", "distance_e6km", "orbital_period_days"]]
"""

CHECK = """
    # Do the columns agree with each other? Density from mass and size; orbital speed from distance
    # and period. (Gas giants are flat at the poles, and no orbit is a circle: some percent are right.)
    radius = planets.diameter_km * 1e3 / 2
    density = planets.mass_e24kg * 1e24 / (4 / 3 * np.pi * radius**3)
    speed = 2 * np.pi * planets.distance_e6km * 1e6 / (planets.orbital_period_days * 86400)
    off = pd.DataFrame({
        "density": density / planets.density_kg_m3 - 1,
        "speed": speed / planets.orbital_velocity_km_s - 1,
    })
    print(f"largest disagreement: {off.abs().max().max():.1%}")
    (off * 100).round(1)
"""

KEPLER = """
    # Kepler: the period grows with the distance to the power of 3/2.
    x, y = np.log(planets.distance_e6km), np.log(planets.orbital_period_days)
    exponent, constant = np.polyfit(x, y, 1)
    print(f"period ~ distance ** {exponent:.3f}")

    fig, ax = plt.subplots()
    ax.scatter(planets.distance_e6km, planets.orbital_period_days)
    for name, row in planets.iterrows():
        ax.annotate(name, (row.distance_e6km, row.orbital_period_days), xytext=(6, -10),
                    textcoords="offset points")
    ax.margins(0.2)
    line = np.array([planets.distance_e6km.min(), planets.distance_e6km.max()])
    ax.plot(line, np.exp(constant) * line**exponent, linewidth=1)
    ax.set(xscale="log", yscale="log", title=f"Kepler's third law: an exponent of {exponent:.3f}",
           xlabel="distance from the Sun, million km", ylabel="orbital period, days")
    plt.show()
"""


def step(s: Sandbox, title: str, code: str) -> ExecResult:
    """Run one cell; print what it printed and showed. A failure ends the program."""
    print(f"\n== {title}")
    r = s.run_code(code, timeout=120, on_stdout=lambda piece: print(piece, end=""))
    if not r.ok:
        sys.exit(str(r))
    for result in r.results:
        print(result)
    return r


def main(picture: str) -> None:
    with Sandbox(template="python-datasci") as s:
        info = s.upload(DATA, "planets.csv")
        print(f"{info.size} bytes of {DATA.name} are in the sandbox as {info.path}")
        step(s, "the data", LOOK)
        step(s, "does it agree with itself?", CHECK)
        r = step(s, "Kepler's third law", KEPLER)
        r.save(picture)
        print(f"\nthe plot is in {picture}, {len(r.png or b'')} bytes")
        chart = next((one.chart for one in r.results if one.chart), None)
        if chart is not None:
            kinds = [one["type"] for one in chart.get("charts", [chart])]
            print(f"the data behind it came along: {', '.join(kinds)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "planets.png")
