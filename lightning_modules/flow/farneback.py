"""Farneback's flow (2003) by OpenCV, with the parameters of the paper authors' earlier public code.

The class defaults of OpenCV (5 levels, window 13, 10 iterations, sigma 1.1) are another algorithm in practice.
"""

import cv2
import numpy as np

from lightning_modules.flow.opencv_flow import OpenCVFlow


class Farneback(OpenCVFlow):
    """Farneback flow from polynomial expansion.

    Args:
        pyr_scale: size of a pyramid level as a share of the finer one.
        levels: levels of the image pyramid.
        winsize: averaging window, px.
        iterations: per level.
        poly_n: neighbourhood of the polynomial expansion, px.
        poly_sigma: standard deviation of the Gaussian that smooths the derivatives.
        gaussian_window: average in a Gaussian window instead of a box.
    """

    algorithm = "farneback"

    def __init__(
        self,
        *,
        pyr_scale: float = 0.5,
        levels: int = 3,
        winsize: int = 15,
        iterations: int = 3,
        poly_n: int = 5,
        poly_sigma: float = 1.2,
        gaussian_window: bool = False,
    ) -> None:
        super().__init__(
            pyr_scale=pyr_scale,
            levels=levels,
            winsize=winsize,
            iterations=iterations,
            poly_n=poly_n,
            poly_sigma=poly_sigma,
            gaussian_window=gaussian_window,
        )

    def flow_of_pair(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return cv2.calcOpticalFlowFarneback(
            first,
            second,
            None,  # type: ignore[call-overload]  # the stubs ask for an array, OpenCV makes one
            pyr_scale=self.options["pyr_scale"],
            levels=self.options["levels"],
            winsize=self.options["winsize"],
            iterations=self.options["iterations"],
            poly_n=self.options["poly_n"],
            poly_sigma=self.options["poly_sigma"],
            flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN if self.options["gaussian_window"] else 0,
        )
