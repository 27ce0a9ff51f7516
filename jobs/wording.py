"""Numbers and times as people read them."""

import datetime


def percent(share: float) -> str:
    """A share as a percentage, finer where it is small."""
    return f"{100 * share:.{2 if 0 < abs(share) < 0.01 else 1}f}%"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def instant(text: str | None) -> str:
    """A time of run.json, to the minute, in UTC; as it stands where it is none."""
    try:
        moment = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return text or ""
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"
