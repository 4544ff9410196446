"""From models to results: one `Detector` behind every front door, answers and captions with boxes, masks."""
