"""The report as JUnit XML, for the test tabs of CI systems: a test case for each rule and each verification.

The structure is that of Jenkins' junit-10.xsd, which GitLab, Azure and the GitHub actions for test reports read, too:
testsuites / testsuite / testcase / (failure | error), system-out, with counts on both levels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from qexport.errors import GateError, VerificationError
from qexport.reporting.provenance import verified
from qexport.reporting.report import Report, file_name

SUITE = "qexport"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def to_junit(report: Report) -> str:
    """Render a report.

    A rule that is broken and a file that was not verified are failures; a format that was not written, or a
    figure that could not be measured, is an error.
    """
    suite = ElementTree.Element("testsuite", name=f"{SUITE} {_clean(file_name(report.model.path))}")
    suite.append(_properties(report))
    for case in (*_verifications(report), *_failures(report), *_unmeasured(report), *_rules(report)):
        suite.append(case)
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
    }
    root = ElementTree.Element("testsuites", name=SUITE)
    root.append(suite)
    seconds = f"{report.elapsed:.2f}"
    for element in (root, suite):
        element.attrib.update({**{name: str(count) for name, count in counts.items()}, "time": seconds})
    suite.set("skipped", "0")
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _properties(report: Report) -> ElementTree.Element:
    """What the figures are of."""
    properties = ElementTree.Element("properties")
    known = {
        "command": report.command,
        "model": report.model.sha256,
        "qexport": report.qexport,
        "processor": report.environment.processor,
        "baseline": report.baseline.path if report.baseline else "",
    }
    for name, value in known.items():
        if value:
            ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    return properties


def _case(artifact: str, name: str, output: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=_clean(f"{SUITE}.{artifact}"), name=_clean(name), time="0")
    if output:
        ElementTree.SubElement(case, "system-out").text = _clean(output)
    return case


def _fault(case: ElementTree.Element, kind: str, type_: str, line: str) -> ElementTree.Element:
    """Put a failure or error before the output, as the schema wants it; tabs show either its text or its message."""
    fault = ElementTree.Element(kind, message=_clean(line), type=type_)
    fault.text = _clean(line)
    case.insert(0, fault)
    return case


def _verifications(report: Report) -> Iterator[ElementTree.Element]:
    """Artifacts that are in the report at all were verified."""
    for artifact in report.artifacts:
        if artifact.verification:
            noted = (f"warning: {warning.text}" for warning in artifact.warnings)
            yield _case(artifact.file_name, "verification", "\n".join((verified(artifact), *noted)))


def _failures(report: Report) -> Iterator[ElementTree.Element]:
    for each in report.failures:
        if each.exit_code == VerificationError.exit_code:
            yield _fault(_case(each.format, "verification", ""), "failure", "VerificationError", each.reason)
        else:
            yield _fault(_case(each.format, "export", ""), "error", f"exit code {each.exit_code}", each.reason)


def _unmeasured(report: Report) -> Iterator[ElementTree.Element]:
    """What was written but could not be measured, or rendered."""
    for each in report.unmeasured:
        case = _case(each.artifact or "run", each.what, each.details)
        yield _fault(case, "error", f"exit code {each.exit_code}", each.reason)


def _rules(report: Report) -> Iterator[ElementTree.Element]:
    """The line of a rule carries the warnings that concern its figure."""
    for rule in report.gate.rules if report.gate else ():
        case = _case(rule.artifact, rule.rule, rule.text)
        yield case if rule.passed else _fault(case, "failure", GateError.__name__, rule.text)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(text))
