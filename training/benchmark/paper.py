"""The paper's success rates (arXiv 2510.25616), to stand beside ours and be marked as theirs."""

from __future__ import annotations

ROWS: dict[str, dict[str, dict[str, float]]] = {
    "put_on_plate": {
        name: dict(
            zip(
                (
                    *("Carrot", "Instruct", "MultiCarrot", "MultiPlate", "Plate", "VisionImage"),
                    *("VisionTexture03", "VisionTexture05", "VisionWhole03", "VisionWhole05"),
                    *("Position", "EEPose", "PositionChangeTo"),
                ),
                rates,
                strict=True,
            )
        )
        for name, rates in {
            "Default": (
                0.49,
                0.74,
                0.28,
                0.43,
                0.73,
                0.81,
                0.67,
                0.55,
                0.71,
                0.56,
                0.43,
                0.34,
                0.23,
            ),
            "Freeze": (
                0.03,
                0.05,
                0.01,
                0.02,
                0.03,
                0.02,
                0.03,
                0.01,
                0.01,
                0.01,
                0.03,
                0.03,
                0.04,
            ),
            "Align": (0.61, 0.83, 0.35, 0.49, 0.75, 0.86, 0.70, 0.67, 0.79, 0.60, 0.58, 0.38, 0.20),
        }.items()
    },
    "vl_think": {
        "OpenVLA": {"Color": 0.69, "Shape": 0.40, "Public": 0.24},
        "Align": {"Color": 0.82, "Shape": 0.48, "Public": 0.30},
    },
    "tabletop": {},
}
"""Suite -> the paper's name of a policy -> environment -> success at any step."""
