"""Compatible models judged side by side: scores, test sets, report."""
