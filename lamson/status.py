"""What the numbers of mail say in words: the enhanced status codes of RFC 3463.

A status is three numbers, ``class.subject.detail``, as in ``5.1.1``. The class says whether trying again can
help, the subject says what the trouble is with, the detail says what the trouble is:

    >>> PRIMARY_STATUS_CODES["5"], SECONDARY_STATUS_CODES["1"], COMBINED_STATUS_CODES["11"]
    ('Permanent Failure', 'Addressing Status', 'Bad destination mailbox address')

The keys are the digits as strings, since that is how they are cut out of a reply. A number that is not here
was not in RFC 3463; nothing in Lamson breaks on it.
"""

# Class, RFC 3463 section 3.1.
PRIMARY_STATUS_CODES = {
    "2": "Success",
    "4": "Persistent Transient Failure",
    "5": "Permanent Failure",
}

# Subject, RFC 3463 section 3.1.
SECONDARY_STATUS_CODES = {
    "0": "Other or Undefined Status",
    "1": "Addressing Status",
    "2": "Mailbox Status",
    "3": "Mail System Status",
    "4": "Network and Routing Status",
    "5": "Mail Delivery Protocol Status",
    "6": "Message Content or Media Status",
    "7": "Security or Policy Status",
}

# Subject and detail together, RFC 3463 sections 3.2 to 3.8.
COMBINED_STATUS_CODES = {
    "00": "Other undefined status",
    "10": "Other address status",
    "11": "Bad destination mailbox address",
    "12": "Bad destination system address",
    "13": "Bad destination mailbox address syntax",
    "14": "Destination mailbox address ambiguous",
    "15": "Destination mailbox address valid",
    "16": "Mailbox has moved",
    "17": "Bad sender's mailbox address syntax",
    "18": "Bad sender's system address",
    "20": "Other or undefined mailbox status",
    "21": "Mailbox disabled, not accepting messages",
    "22": "Mailbox full",
    "23": "Message length exceeds administrative limit",
    "24": "Mailing list expansion problem",
    "30": "Other or undefined mail system status",
    "31": "Mail system full",
    "32": "System not accepting network messages",
    "33": "System not capable of selected features",
    "34": "Message too big for system",
    "35": "System incorrectly configured",
    "40": "Other or undefined network or routing status",
    "41": "No answer from host",
    "42": "Bad connection",
    "43": "Routing server failure",
    "44": "Unable to route",
    "45": "Network congestion",
    "46": "Routing loop detected",
    "47": "Delivery time expired",
    "50": "Other or undefined protocol status",
    "51": "Invalid command",
    "52": "Syntax error",
    "53": "Too many recipients",
    "54": "Invalid command arguments",
    "55": "Wrong protocol version",
    "60": "Other or undefined media error",
    "61": "Media not supported",
    "62": "Conversion required and prohibited",
    "63": "Conversion required but not supported",
    "64": "Conversion with loss performed",
    "65": "Conversion failed",
    "70": "Other or undefined security status",
    "71": "Delivery not authorized, message refused",
    "72": "Mailing list expansion prohibited",
    "73": "Security conversion required but not possible",
    "74": "Security features not supported",
    "75": "Cryptographic failure",
    "76": "Cryptographic algorithm not supported",
    "77": "Message integrity failure",
}
