"""What the tests look for in a page of the admin."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page: the values of its rows, its hidden fields, the actions offered, its buttons and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.hidden: list[tuple[str, str]] = []
        self.actions: list[str] = []
        self.buttons: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        name, value = attributes.get("name"), attributes.get("value") or ""
        if tag == "input" and name == "_selected_action":
            self.rows.append(value)
        if tag == "input" and attributes.get("type") == "hidden" and name:
            self.hidden.append((name, value))
        if tag == "option" and value:
            self.actions.append(value)
        if tag == "input" and attributes.get("type") == "submit":
            self.buttons.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data
