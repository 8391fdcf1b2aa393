"""Generates messages for `manage.py seed`. Nothing here uses the database."""

# ruff: noqa: RUF001 - the letters are those of their languages
import random
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.conf import settings

from messaging.backfill import PastMessage
from messaging.records import NewMessage

# A line for each language.
_PHRASES = """\
Your parcel should arrive before noon. | Could you look at the draft by Thursday? | Thanks, that works for me!
Könnten Sie mir die Unterlagen noch heute schicken? | Schöne Grüße aus München! | Das Straßenfest beginnt um 15 Uhr.
N’oubliez pas la réunion de demain à 9 h. | Votre réservation est confirmée. | On se retrouve ailleurs ?
¿Puedes llamarme cuando llegues? | El pedido llegará mañana por la tarde. | ¡Nos vemos el sábado!
Dziękuję za szybką odpowiedź. | Proszę o przesłanie faktury do piątku. | Spóźnię się około dziesięciu minut.
Добрый день, ваш заказ уже в пути. | Встречаемся завтра в семь у входа. | Спасибо, всё получил.
Το ραντεβού σας είναι αύριο στις δέκα. | Ευχαριστώ πολύ για τη βοήθεια! | Η πληρωμή σας ολοκληρώθηκε.
Siparişiniz kargoya verildi. | Yarın görüşürüz, iyi akşamlar! | Lütfen ekteki dosyayı inceleyip onaylayın.
تم تأكيد موعدك يوم الأحد الساعة العاشرة صباحًا. | شكرًا جزيلًا على المساعدة. | ستصل الشحنة خلال يومين.
ההזמנה שלך יצאה למשלוח. | נתראה מחר בשמונה בערב. | תודה רבה על העזרה!
आपका ऑर्डर भेज दिया गया है। | कल सुबह दस बजे मिलते हैं। | सहायता के लिए बहुत धन्यवाद!
您的包裹已发出，预计明天送达。 | 会议改到下午三点。 | 谢谢，我已经收到了。
ご注文の商品を発送しました。 | 明日の会議は十時からです。 | よろしくお願いいたします。
주문하신 상품이 발송되었습니다. | 내일 오후 두 시에 뵙겠습니다. | 빠른 답변 감사합니다!
On my way 🚲💨 see you in 10! | Happy birthday!! 🎂🎉🥳 | The family says hi 👨‍👩‍👧‍👦 ❤️
"""
_LANGUAGES = [line.split(" | ") for line in _PHRASES.splitlines()]
_SENDERS = ("alice", "björn", "chen.wei", "notifications@example.com", "billing", "Support Desk", "дмитрий", "山田")
# Most messages carry none.
_METADATA = (*["{}"] * 6, '{"channel":"email"}', '{"channel":"app","priority":2}')
_LONGEST_UNREAD = timedelta(days=14)  # a message that is read at all is read within this time

_chance = random.Random()  # noqa: S311 - nothing secret


def history(
    count: int, recipients: list[str], *, unread: int, mean_length: int, since: datetime, until: datetime
) -> Iterator[PastMessage]:
    """`count` messages from `since` to `until` in order of time, exactly `unread` of them unread.

    The first messages go to one recipient each, so that every mailbox gets one; the others go to random recipients.
    """
    dealt = iter(_chance.sample(recipients, len(recipients)))
    for index, length in enumerate(_lengths(count, mean_length)):
        # Selection sampling (Knuth, algorithm S): random, and exact in total.
        is_unread = _chance.random() * (count - index) < unread
        unread -= is_unread
        created_at = since + (until - since) * ((index + _chance.random()) / count)
        waited = min(_LONGEST_UNREAD, until - created_at) * _chance.random() ** 3
        recipient = next(dealt, None) or _chance.choice(recipients)
        message = NewMessage(recipient, _content(length), _chance.choice(_SENDERS), _chance.choice(_METADATA))
        yield PastMessage(message, created_at, None if is_unread else created_at + waited)


def _lengths(count: int, mean: int) -> Iterator[int]:
    """`count` lengths of a content with exactly this mean: each pair is symmetric to it."""
    spread = min(mean - 1, settings.MESSAGES_MAX_CONTENT_LENGTH - mean, mean * 3 // 4)
    for _ in range(count // 2):
        distance = _chance.randint(-spread, spread)
        yield mean + distance
        yield mean - distance
    if count % 2:
        yield mean


def _content(length: int) -> str:
    """Sentences of one language, cut to `length` characters."""
    sentences = _chance.choice(_LANGUAGES)
    text = _chance.choice(sentences)
    while len(text) < length:
        text += f" {_chance.choice(sentences)}"
    return text[:length]
