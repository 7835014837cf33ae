"""Which proxy a request takes, and which addresses are public."""

import ipaddress

import pytest

from process_supervisor.proxies import Proxies, is_public, is_this_machine, literal_address

ENVIRONMENT = {"HTTP_PROXY": "http://plain:3128", "HTTPS_PROXY": "secure:3129", "NO_PROXY": "corp.example, 10.0.0.0/8"}


@pytest.mark.parametrize(
    ("environ", "setting", "url", "proxy"),
    [
        (ENVIRONMENT, "", "https://mirror.example/a", "http://secure:3129"),
        (ENVIRONMENT, "", "http://mirror.example/a", "http://plain:3128"),
        ({"HTTPS_PROXY": "http://upper", "https_proxy": "http://lower"}, "", "https://h/", "http://lower"),
        ({"ALL_PROXY": "http://every:1"}, "", "https://h/", "http://every:1"),
        ({}, "", "https://h/", None),
        (ENVIRONMENT, "https://named:8080", "http://h/", "https://named:8080"),
        (ENVIRONMENT, "off", "https://h/", None),
        (ENVIRONMENT, "http://named:1", "https://a.corp.example/", None),
    ],
)
def test_the_proxy_is_the_settings_or_the_environments(
    environ: dict[str, str], setting: str, url: str, proxy: str | None
) -> None:
    assert Proxies.from_environment(environ, setting).proxy_for(url) == proxy


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "[::1]", "localhost", "LOCALHOST", "a.localhost", "localhost.", "127.1", "[::]"],
)
def test_loopback_is_never_reached_through_a_proxy(host: str) -> None:
    assert Proxies(http="http://p", https="http://p").proxy_for(f"https://{host}:8443/x") is None


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "https://h.example/", True),
        ("example", "https://h.example/", True),
        (".example", "https://h.example/", True),
        ("*.example", "https://h.example/", True),
        ("xample", "https://h.example/", False),
        ("h.example:443", "https://h.example/", True),
        ("h.example:8443", "https://h.example/", False),
        ("H.EXAMPLE", "https://h.example/", True),
        ("h.example", "https://H.Example./", True),
        ("10.0.0.0/8", "http://10.2.3.4/", True),
        ("10.2.3.4", "http://10.2.3.4/", True),
        ("10.0.0.0/8", "http://11.2.3.4/", False),
        ("2001:db8::/32", "http://[2001:db8::7]/", True),
        ("[2001:db8::7]:80", "http://[2001:db8::7]/", True),
        ("", "https://h.example/", False),
    ],
)
def test_no_proxy(entry: str, url: str, direct: bool) -> None:
    proxies = Proxies.from_environment({"ALL_PROXY": "http://p", "NO_PROXY": entry})
    assert (proxies.proxy_for(url) is None) == direct


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.1", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("fec0::1", False),
        ("feff::1", False),
        ("64:ff9b:1::a00:1", False),
        ("::10.0.0.1", False),
        ("::93.184.216.34", False),
        ("::ffff:0:10.0.0.1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) == public


def test_old_spellings_of_addresses() -> None:
    spelt = {
        "127.1": "127.0.0.1",
        "0x7f000001": "127.0.0.1",
        "2130706433": "127.0.0.1",
        "127.1.": "127.0.0.1",
        "10.0.0.1.": "10.0.0.1",
        "fe80::1%eth0": "fe80::1",
    }
    assert {text: str(literal_address(text)) for text in spelt} == spelt
    assert literal_address("face.example") is None
    assert is_this_machine("0x7f.1")
