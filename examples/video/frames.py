"""Writes every Nth frame of a clip, and the frame two before it: frames.py CLIP FOLDER N

The files in FOLDER are <number>-now.png and <number>-before.png.
"""

import sys
from pathlib import Path

import cv2

clip, folder, every = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
video = cv2.VideoCapture(clip)
if not video.isOpened():
    sys.exit(f"OpenCV cannot read {clip} as a video")

recent = []
number = 0
while True:
    read, frame = video.read()
    if not read:
        break
    recent = (recent + [frame])[-3:]
    if number % every == every // 2 and len(recent) == 3:
        cv2.imwrite(str(folder / f"{number:05d}-now.png"), recent[-1])
        cv2.imwrite(str(folder / f"{number:05d}-before.png"), recent[0])
    number += 1
print(f"{number} frames, {len(list(folder.glob('*-now.png')))} samples")
