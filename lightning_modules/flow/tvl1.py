"""TV-L1 flow (Zach et al. 2007) as OpenCV's contrib module computes it; the paper, section 4, uses its defaults."""

import cv2
import numpy as np

from lightning_modules.flow.opencv_flow import OpenCVFlow


class TVL1(OpenCVFlow):
    """Dual TV-L1 flow. The defaults are those of OpenCV 4 and of the paper; OpenCV 5 differs by up to 0.67 px.

    Args:
        tau: time step of the numerical scheme.
        lambda_: weight of the data term; smaller is smoother.
        theta: tightness of the coupling between the data and the smoothness term.
        scales: levels of the image pyramid.
        scale_step: size of a level as a share of the finer one.
        warps: warps per level.
        epsilon: stopping threshold, px.
        inner_iterations: between two outlier filterings.
        outer_iterations: outer loops per warp.
        median_filtering: aperture of the median filter; 1 is none.
        gamma: weight of the illumination term; 0 leaves it out.

    Raises:
        ImportError: the installed OpenCV has no contrib modules.
    """

    algorithm = "tvl1"

    def __init__(
        self,
        *,
        tau: float = 0.25,
        lambda_: float = 0.15,
        theta: float = 0.3,
        scales: int = 5,
        scale_step: float = 0.8,
        warps: int = 5,
        epsilon: float = 0.01,
        inner_iterations: int = 30,
        outer_iterations: int = 10,
        median_filtering: int = 5,
        gamma: float = 0.0,
    ) -> None:
        if not hasattr(cv2, "optflow"):
            raise ImportError(
                f"TV-L1 needs cv2.optflow, which the installed OpenCV {cv2.__version__} lacks: remove every opencv-* "
                'wheel, then install "opencv-contrib-python-headless>=4.10,<5" (a second OpenCV wheel removes it again)'
            )
        super().__init__(
            tau=tau,
            lambda_=lambda_,
            theta=theta,
            scales=scales,
            scale_step=scale_step,
            warps=warps,
            epsilon=epsilon,
            inner_iterations=inner_iterations,
            outer_iterations=outer_iterations,
            median_filtering=median_filtering,
            gamma=gamma,
        )

    def flow_of_pair(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        # an algorithm object holds buffers, so no two threads may share one
        algorithm = cv2.optflow.DualTVL1OpticalFlow_create(  # type: ignore[attr-defined]  # not in the stubs
            tau=self.options["tau"],
            lambda_=self.options["lambda_"],
            theta=self.options["theta"],
            nscales=self.options["scales"],
            warps=self.options["warps"],
            epsilon=self.options["epsilon"],
            innnerIterations=self.options["inner_iterations"],  # OpenCV spells it so
            outerIterations=self.options["outer_iterations"],
            scaleStep=self.options["scale_step"],
            gamma=self.options["gamma"],
            medianFiltering=self.options["median_filtering"],
        )
        return algorithm.calc(first, second, None)
