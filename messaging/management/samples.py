"""Generates messages for `manage.py seed`. The same random seed gives the same messages.

Nothing here uses the database.
"""

# ruff: noqa: RUF001 - the letters are those of their languages
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

from messaging.backfill import PastMessage
from messaging.records import NewMessage

# A paragraph for each language, a line for each sentence.
PHRASES = """\
Your parcel is out for delivery and should arrive before noon.
Could you look at the draft by Thursday?
The invoice for March is attached.
Thanks, that works for me!
Maintenance is planned for Sunday between 02:00 and 04:00 UTC.
We have moved the meeting to room 4.

Könnten Sie mir die Unterlagen noch heute schicken?
Schöne Grüße aus München!
Der Zug fällt aus, ich komme eine Stunde später.
Ihre Bestellung wurde soeben verschickt.
Das Straßenfest beginnt um 15 Uhr.

N’oubliez pas la réunion de demain à 9 h.
Votre réservation est confirmée.
Je vous rappelle dès que possible.
Le café près de la gare est fermé, on se retrouve ailleurs ?

¿Puedes llamarme cuando llegues?
El pedido llegará mañana por la tarde.
Muchas gracias por tu ayuda, ¡nos vemos el sábado!
Adjunto el informe del último año.

Dziękuję za szybką odpowiedź.
Proszę o przesłanie faktury do piątku.
Spóźnię się około dziesięciu minut.

Добрый день, ваш заказ уже в пути.
Встречаемся завтра в семь у входа.
Пароль изменён; если это были не вы, сообщите нам.
Спасибо, всё получил.

Το ραντεβού σας είναι αύριο στις δέκα.
Ευχαριστώ πολύ για τη βοήθεια!
Η πληρωμή σας ολοκληρώθηκε.

Siparişiniz kargoya verildi.
Yarın görüşürüz, iyi akşamlar!
Lütfen ekteki dosyayı inceleyip onaylayın.

تم تأكيد موعدك يوم الأحد الساعة العاشرة صباحًا.
شكرًا جزيلًا على المساعدة.
ستصل الشحنة خلال يومين.

ההזמנה שלך יצאה למשלוח.
נתראה מחר בשמונה בערב.
תודה רבה על העזרה!

आपका ऑर्डर भेज दिया गया है।
कल सुबह दस बजे मिलते हैं।
सहायता के लिए बहुत धन्यवाद!

您的包裹已发出，预计明天送达。
会议改到下午三点。
谢谢，我已经收到了。
请在周五之前回复。

ご注文の商品を発送しました。
明日の会議は十時からです。
よろしくお願いいたします。
資料を添付しましたのでご確認ください。

주문하신 상품이 발송되었습니다.
내일 오후 두 시에 뵙겠습니다.
빠른 답변 감사합니다!

On my way 🚲💨 see you in 10!
Happy birthday!! 🎂🎉🥳
👍🏽 done
The family says hi 👨‍👩‍👧‍👦 ❤️
"""

SENDERS = ("alice", "björn", "chen.wei", "notifications@example.com", "billing", "Support Desk", "дмитрий", "山田")
# Most messages carry none.
METADATA = (*["{}"] * 6, '{"channel":"email"}', '{"channel":"app","priority":2}')
LONGEST_UNREAD = timedelta(days=14)  # a message that is read at all is read within this time
_STARTS = 500  # positions in a language's text where a content may begin


class Samples:
    """Generates contents in all languages."""

    def __init__(self, chance: random.Random, longest: int) -> None:
        """`longest` is the maximum number of characters of a content."""
        self._chance = chance
        self._texts = [self._text(paragraph.splitlines(), longest) for paragraph in PHRASES.split("\n\n")]

    def _text(self, sentences: list[str], longest: int) -> tuple[str, list[int]]:
        """A text of one language, and the positions of sentences that at least `longest` characters follow.

        A content is a slice of the text, which makes ten million of them cheap.
        """
        separator = "" if sentences[0].endswith("\N{IDEOGRAPHIC FULL STOP}") else " "
        parts: list[str] = []
        starts: list[int] = []
        length = 0
        while len(starts) < _STARTS or length < starts[-1] + longest:
            if len(starts) < _STARTS:
                starts.append(length)
            parts.append(self._chance.choice(sentences) + separator)
            length += len(parts[-1])
        return "".join(parts), starts

    def content(self, length: int) -> str:
        """Sentences of one language, cut to `length` characters. The first character is never white space."""
        text, starts = self._chance.choice(self._texts)
        start = self._chance.choice(starts)
        return text[start : start + length]


def lengths(chance: random.Random, count: int, *, mean: int, maximum: int) -> Iterator[int]:
    """`count` lengths from 1 to `maximum` with exactly the mean `mean`: each pair is symmetric to it."""
    spread = min(mean - 1, maximum - mean, mean * 3 // 4)
    for _ in range(count // 2):
        distance = chance.randint(-spread, spread)
        yield mean + distance
        yield mean - distance
    if count % 2:
        yield mean


def history(
    chance: random.Random,
    count: int,
    recipients: list[str],
    *,
    unread: int,
    mean_length: int,
    maximum_length: int,
    since: datetime,
    until: datetime,
) -> Iterator[PastMessage]:
    """`count` messages from `since` to `until` in order of time, exactly `unread` of them unread.

    The first messages go to one recipient each, so that every mailbox gets one; the others go to random recipients.
    """
    samples = Samples(chance, maximum_length)
    dealt = iter(chance.sample(recipients, len(recipients)))
    for index, length in enumerate(lengths(chance, count, mean=mean_length, maximum=maximum_length)):
        # Selection sampling (Knuth, algorithm S): random, and exact in total.
        is_unread = chance.random() * (count - index) < unread
        unread -= is_unread
        created_at = since + (until - since) * ((index + chance.random()) / count)
        waited = min(LONGEST_UNREAD, until - created_at) * chance.random() ** 3
        recipient = next(dealt, None) or chance.choice(recipients)
        draft = NewMessage(recipient, samples.content(length), chance.choice(SENDERS), chance.choice(METADATA))
        yield PastMessage(draft, created_at, None if is_unread else created_at + waited)


def chunks(messages: Iterator[PastMessage], size: int) -> Iterator[list[PastMessage]]:
    """The messages in lists of `size`, the last one shorter."""
    while chunk := list(islice(messages, size)):
        yield chunk
