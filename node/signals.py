"""The signals that tell a process to end politely."""

import signal


def ending() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and the hang-up of a closed terminal, unless nohup has us ignore it."""
    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hang_up)
