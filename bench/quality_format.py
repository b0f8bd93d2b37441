"""Numbers, scales and origins as docs/quality.md writes them: rounded against us, with the command that measured."""

import math


def up(value, digits):
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def down(value, digits):
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def up3(value):
    """Three significant digits, never less than the value."""
    if value <= 0:
        return f"{value:.2e}"
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step) * step:.2e}"


def interval(x, text):
    return f"{text(x['value'])} [{text(x['low'])}, {text(x['high'])}]"


class Axis:
    """Maps values to pixels on a logarithmic scale."""

    def __init__(self, low, high, begin, end):
        self.low, self.high, self.begin, self.end = math.log10(low), math.log10(high), begin, end

    def at(self, value):
        return self.begin + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.begin)


def machine_of(report):
    machine = report["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores"
    device = report.get("device", "cpu")
    return where if device == "cpu" else f"one {device} ({where})"


def about(report):
    return f"`{report['command']}`, {report['date'][:10]}, commit {report['commit']}, {machine_of(report)}."


def passages_of(report):
    setup = report["setup"]
    passages = "The first passage" if setup["passages"] == 1 else f"{setup['passages']} passages"
    spread = " of" if setup["passages"] == 1 else ", evenly spread over"
    return (
        f"{passages} of {setup['prompt_tokens']} + {setup['decode_tokens']} tokens{spread} `{setup['text']}` "
        f"(CRC32C {setup['text_crc32c']}, {setup['text_tokens']:,} tokens)"
    )
