"""Maps against truth: confusion and scores, intervals, sampling designs and estimates."""
