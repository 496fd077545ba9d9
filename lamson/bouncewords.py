"""The words that mail servers use when they cannot deliver, in the languages that they use.

Patterns only. `lamson.bouncetext` reads a notice with them:

    >>> next(detail for detail, pattern in MEANINGS if pattern.search("sorry, the mailbox of zoe is full"))
    '2.2'
    >>> bool(SUBJECT.search("onbestelbaar: menu")), bool(ROBOT.search("mail delivery system <zed@>"))
    (True, True)

Each line is an alternative, a backslash at its end continues it, and ``~3`` stands for up to three words, of which none
has to be there. They are made for text in lower case with single spaces, and without brackets, quotes and stars
(`lamson.bouncetext.plain`). All repetitions are bounded, and none can match the same text in two ways: however long and
strange a text is, it does not make them slow.
"""

import re


def _any(alternatives: str) -> re.Pattern[str]:
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", alternatives).splitlines()]
    text = "|".join(line for line in lines if line and not line.startswith("# "))
    # Without re.I: it makes a search take two or three times as long.
    return re.compile(re.sub(r" ~(\d) ", r"(?: \\S+){0,\1} ", text))


# Who sends notices. Held against the name and the local part in the From header, up to the @.
ROBOT = _any(r"""
    (?<![a-z])(?:mailer|mail|mailing|smtp|delivery|email)[-_. ]?(?:daemon|delivery|agent|server|system|router\
        |gateway)s?(?![a-z])
    (?<![a-z])(?:bounces?|bounced|returned?|notification|postal)[-_. ]?daemon(?![a-z])
    (?<![a-z])returned (?:e-?)?mail(?![a-z])
    (?<![a-z])(?:smtp|mail)[-_. ]?(?:mail[-_. ]?)?service
    (?<![a-z])mailer(?=@|$)
    (?<![a-z])post[-_. ]?(?:master|office)(?![a-z])
    (?<![a-z])mdaemon(?![a-z])
    <>|^\s*$
    (?<![a-z])microsoft[-_. ]?exchange
    (?<![a-z])mail[-_. ]?(?:transfer|transport|notification|error)
    (?<![a-z])delivery[-_. ]?sub[-_. ]?system
    (?<![a-z])undeliver
    (?<![a-z])interscan(?![a-z])
    smtp[-_. ]?gateway
    (?<![a-z])(?:mta|listserv|nd[nr]|dsn)@
""")  # fmt: skip

# Who sends hardly anything else, so that it needs no language that is known here.
DAEMON = _any(r"""
    (?<![a-z])mailer[-_. ]?daemon(?![a-z])
    (?<![a-z])mail delivery (?:sub)?system(?![a-z])
""")  # fmt: skip

# Who does, and writes about other things, too: people who look after mail servers, and what filters mail.
ADMINISTRATOR = _any(r"""
    (?<![a-z])(?:system|mail|e-?mail)[-_. ]?admin(?:istration)?(?![a-z])
    (?<![a-z])administrator(?![a-z])
    (?<![a-z])(?:mail|e-?mail|content|spam)[-_. ]?(?:filter|scanner|firewall|guard|security)(?![a-z])
""")  # fmt: skip

# That it did not arrive, in languages in which notices say it with the same words in the subject and in the text.
_NOT_DELIVERED = r"""
    # Catalan, Romanian
    no (?:es pot|s'ha pogut|ha estat|és possible) ~2 lliura
    no lliura[tb]
    nelivrabil
    nu (?:a )?(?:putut|poate) fi livrat
    livrarea .{0,20}(?:a eșuat|a esuat|nu a reușit)
    # Swedish, Danish, Norwegian, Finnish
    olevererb
    går inte att leverera
    (?:kan|kunde|kunne) (?:inte|ikke) .{0,12}lever
    ikke lever
    uleverbar
    ei voi(?:tu|da)? (?:toimittaa|perille)
    toimitus(?:virhe| epäonnistui)
    perille ?toimittam
    # Polish, Czech, Slovak, Croatian, Slovenian, Hungarian
    niedostarcz
    nie (?:można|udało się|został\w*) ~1 (?:dostarcz|doręcz)
    nedoruč(?:it|en)
    (?:nelze|nepodařilo|nebylo možné) ~2 doručit
    chyba (?:při|v) doruč
    nemožno doručiť
    neisporuč
    ni(?:je|su|smo)? ~2 (?:isporuč|dostavlj|uruč)
    nije moguće (?:isporuč|dostavi|uruč)
    ni (?:bilo )?mogoče dostaviti
    dostava .{0,16}(?:nije|ni) uspel
    kézbesíthetetlen
    (?:nem|sikertelen) .{0,12}kézbesít
    # Russian, Ukrainian, Bulgarian
    не ?(?:удал\w*|удается|удаётся|может быть|было|был|вдал\w*) ~2 достав
    недостав
    не ?доставлен
    ошибка (?:доставки|при доставке)
    недоставен
    не може (?:да )?бъде доставен
    возвра[щт]\w* (?:почт|письм)
    # Lithuanian, Latvian, Estonian
    ne(?:pristatyt|pavyko (?:pristatyti|įteikti))
    ne(?:piegādā|izdevās (?:piegādāt|nosūtīt))
    (?:ei saanud|ei õnnestunud) .{0,16}(?:edastada|toimetada|saata)
    edastamine .{0,16}ebaõnnestus
    # Greek, Turkish
    αποτυχία (?:παράδοσης|αποστολής)
    (?:δεν ήταν δυνατ|δεν μπόρεσε|δεν κατέστη δυνατ)\S* ~3 παραδ
    δεν παραδόθηκ
    αδυναμία παράδοσης
    (?:αδύνατη|δεν είναι δυνατή) η παράδοση
    μη παραδ
    teslim ed(?:ileme|ilemi)
    iletilemedi
    gönderilemedi
    teslimat (?:hatası|başarısız)
    # Hebrew, Arabic, Thai, Vietnamese, Indonesian
    לא (?:ניתן )?(?:למסור|לשלוח|נמסר|נשלח)
    تعذر (?:ال)?(?:تسليم|توصيل)
    غير قابلة? للتسليم
    (?:لم يتم|فشل) (?:ال)?(?:تسليم|إرسال|توصيل)
    تحویل (?:داده )?نشد|(?:ارسال|تحویل) ناموفق
    ส่ง(?:ไม่สำเร็จ|ไม่ได้)|ไม่สามารถส่ง
    không (?:thể )?(?:gửi|chuyển|phát)
    tidak (?:dapat )?(?:terkirim|dikirim)
    gagal (?:terkirim|dikirim)
"""

# What notices are called.
SUBJECT = _any(r"""
    un-?deliver
    non-?deliver
    \bnd[nr]:
    not (?:be )?deliver(?:ed|able)
    deliver\w* ~2 (?:fail|error|problem|delay|report|notif|incomplete|impossible|status|abort)
    (?:fail|error|problem|delay|unable|trouble)\w* ~3 (?:deliver|send)
    return(?:ed|ing)? (?:(?:e-?)?mail|message|to sender)
    (?:mail|message)s? (?:was |has been |is )?(?:returned|rejected|bounced|blocked|delayed)
    failure notice
    (?:failed|bounced|rejected|returned|delayed) (?:(?:e-?)?mail|message|posting)
    mail ~1 (?:failure|failed|error|delay|bounce)
    (?:could|can) ?(?:not|n't) (?:be )?(?:deliver|sen[dt])
    message .{1,80} delayed
    (?:user|recipient|address|mailbox|inbox|quota|host|domain) ~1 (?:unknown|not found|full|rejected|exceeded)
    (?:unknown|no such|invalid|bad|illegal) ~1 (?:user|recipient|address|mailbox|host|domain)
    \b(?:e-?mail|mail|message|processing|fatal) ~1 error
    \berror ~2 (?:e-?mail|mail|message)
    transcript
    mail ?loop|loop alert
    warning.{1,12}(?:could|message|mail|delay)
    permanent ~1 (?:failure|error)
    over quota
    error sending
    you sent ~1 blocked
    message status
    \bdsn\b
    # German
    (?:un|nicht )zustell
    nicht zugestellt
    zustell\w* ~1 (?:fehlgeschlagen|nicht|verz)
    zustellungs?-?(?:fehler|problem|status)
    fehler bei der (?:zustellung|übermittlung)
    zurückgewiesen
    # French
    non[ -](?:remis|distribu|délivr|livr)
    échec ~2 (?:remise|livraison|distribution|envoi|acheminement)
    échec d'
    retour de (?:courrier|message)
    état de remise
    impossible de (?:remettre|distribuer|livrer)
    # Italian
    non (?:recapitat|recapitabil|consegna)
    non è stato consegnat
    impossibile (?:recapitare|consegnare|inviare)
    manca(?:ta|to) (?:consegna|recapito)
    stato (?:di |del )?(?:consegna|recapito)
    errore di (?:consegna|recapito)
    # Spanish
    no (?:se )?(?:puede|pudo|ha podido|ha sido|fue) .{0,12}entrega
    no entregad
    (?:error|fallo|falló|fallida) ~2 entrega
    entrega .{0,16}(?:falló|fallida)
    (?:correo|mensaje) devuelto
    estado de (?:la )?entrega
    # Portuguese
    não (?:foi )?(?:é )?(?:possível )?entreg
    falha (?:na|de|no) (?:entrega|envio)
    (?:e-?mail|mensagem) devolvid
    # Dutch
    onbestelbaar
    niet (?:worden )?(?:bezorgd|afgeleverd|bestelbaar|verzonden)
    aflevering .{0,12}mislukt
    # Japanese
    配(?:信|送|達)(?:不能|不可|でき|エラー|失敗|され|に失敗|状況|遅延)
    送信(?:不能|でき|エラー|失敗|に失敗)
    不達|未達|未配信|戻りメール|リターンメール|エラーメール|メールエラー
    届(?:けられ|きません|かな)
    宛先不明
    # Chinese
    退信|退回|退件
    (?:无法|無法|不能|未能)(?:投递|投遞|传递|傳遞|送达|送達|发送|傳送|递送|遞送)
    (?:投递|投遞|传递|傳遞|递送|遞送|发送|傳送|送达)(?:失败|失敗|状态|狀態|延迟|延遲|错误|錯誤)
    未(?:送达|送達|投递|傳遞|传递)
    # Korean
    반송
    (?:배달|전송|전달|발송)(?:되지|할 수| ?실패|이 지연| ?상태| ?오류)
""" + _NOT_DELIVERED)  # fmt: skip

# An answer to a notice, or somebody who passes one on, is no notice.
REPLY = re.compile(
    r"\s*(?:re|aw|sv|antw|vs|ynt|odp|res|rif|ref|fwd?|wg|tr|i|fs|enc|rv|回复|回覆|答复|返信|转发|轉寄|転送)(?:\[\d+\])?\s*[:：]",
    re.I,
)

# What mail servers write about to those who look after them, or to those whose mailbox they keep, with the same words.
OTHER_SUBJECT = _any(r"""
    (?:almost|nearly|\d\d ?%|close to|approaching|soon) ~3 (?:full|limit|quota|exceeded)
    (?:quota|mailbox|storage|disk|space) ~2 (?:warning|usage|notice|alert|almost|nearly|approach|is at \d|at \d)
    \b(?:hourly|daily|weekly|monthly)\b
    \b(?:summary|digest|statistics)\b
""")  # fmt: skip

# How people's mailers answer by themselves while those are away, and what they call it.
AUTO_REPLY_SUBJECT = _any(r"""
    out[- ]of[- ](?:the[- ])?office
    \bauto(?:matic|mated|matisch\w*)?[- ]?(?:reply|response|responder|answer|antwort|antwoord|e-?mail)
    \bvacation\b
    away from (?:my|the) (?:mail|e-?mail|office|desk)
    \bon (?:leave|holiday)
    ^auto:
    abwesen
    nicht im (?:büro|hause)
    réponse automatique
    absen(?:ce|t) du bureau
    respuesta automática
    fuera de (?:la )?oficina
    risposta automatica
    fuori (?:sede|ufficio)
    resposta automática
    fora do escritório
    afwezig
    autosvar|automatiskt? svar|frånvaro|fravær
    automaattinen vastaus|poissa
    automatyczna odpowied|nieobecno
    automatická odpov
    automatikus válasz
    автоматический ответ|автоответ
    otomatik yanıt
    自動(?:返信|応答|回覆|答覆)|不在(?:通知|です|中)
    自动(?:回复|答复|应答)
    자동 ?(?:회신|응답)|부재중
""")  # fmt: skip

# What the trouble is: RFC 3463's subject and detail, without the class. The first that is found counts, so what is
# said more precisely stands further up.
MEANINGS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # Too much at once
    ("5.3", _any(r"""
        too many ~2 (?:recipients|rcpt|connections|messages (?:from|per|sent)|errors|sessions|concurrent)
        (?:rate|sending|hourly|daily|relay) ~2 (?:limit|quota)
        (?:recipients|connections|messages) ~2 (?:limit|exceeded)
        throttl
        (?:sending|sent|mail|messages) too (?:fast|frequently|many)
    """)),
    # The mailbox is full
    ("2.2", _any(r"""
        \b(?:mail|in|e-?mail|user|voice)[- ]?box(?:es)? ~3 (?:full|overflow|exceed|over)
        \bfolder ~1 full
        (?:over|exceed\w*|reached|past|above|beyond|out of) ~3 (?:quota|storage|disk|mailbox size|allocation|space)
        (?:quota|allocation|mailbox size|storage|disk space|space) ~3 (?:exceed|full|reached|violat|exhaust|over)
        quota[- ]exceed
        over-?quota
        (?:not enough|insufficient|no) ~1 (?:storage|space|room|quota|disk)
        mail ?box[- ]?full
        full (?:mail|in) ?box
        mbox full
        account ~2 (?:over|exceed|full)
        too many messages (?:in|on|stored)
        exceeds allowed size
        disk full
        (?:postfach|speicherplatz|quota|mailbox) ~3 (?:voll|überschritten|überfüllt|erschöpft)
        boîte .{0,30}(?:pleine|saturée)
        casella .{0,20}piena
        buz[oó]n .{0,30}llen[oa]
        caixa .{0,30}(?:cheia|lotada)
        postvak .{0,10}vol
        ящик .{0,40}(?:переполнен|заполнен)
        skrzynk\w .{0,20}(?:pełn|przepełn)
        容量.{0,12}(?:超|オーバー|一杯|いっぱい|不足)
        (?:メールボックス|受信箱|メールサーバ).{0,20}(?:一杯|いっぱい|満杯|超過|オーバー|超え)
        (?:信箱|邮箱|郵箱|空间|空間).{0,10}(?:满|滿|不足)
        꽉 ?[찼차]|용량 ?초과
    """)),
    # It took too long
    ("4.7", _any(r"""
        queue ~2 too long
        too long ~3 queue
        (?:queue|retry|delivery|message|transport|lifetime)\w* ~3 (?:expired|timed? ?out|timeout exceeded)
        failing ~2 (?:for|since) ~1 (?:long|\d)
        deliver\w* ~2 failed \d+ attempts
        after \d+ (?:attempts|tries|retries|hours|days)
        (?:deliver|connect|try|tried|trying|sent|send|queue)\w* ~6 (?:for|within|after|in) ~2 \d+ \
            (?:hour|day|minute|week)s?
        (?:time|message|delivery|mail) ~2 (?:expired|timed out)
        expired (?:while|before|in)
        exceeded ~2 (?:time|lifetime|queue)
        \bdeferred:
        (?:gave|given|giving) up ~2 too long
        maximum ~2 (?:retr|attempts|hop time|time)
        max(?:imum)? retr
    """)),
    # The message is too big
    ("3.4", _any(r"""
        \b(?:message|mail|e-?mail|data|attachment|content|file)s? ~3 (?:too (?:big|large|long)|larger than\
            |bigger than)
        \btoo (?:big|large)\b
        exceed\w* ~5 (?:size|length)
        (?:size|length|line) ~1 (?:exceed|limit|restriction)
        max(?:imum|\.)? ~2 (?:size|length)
        zu groß
        trop (?:gros|volumineux|long)
        サイズ.{0,16}(?:超|大き|制限)
        过大|太大|超过.{0,8}(?:大小|限制)
    """)),
    # There is no such domain, said plainly; more below
    ("1.2", _any(r"""
        \bdomain ~2 (?:not found|(?:could|can|does) ?n[o']t (?:be found|exist))
        \bno such domain
    """)),
    # There is no such mailbox
    ("1.1", _any(r"""
        \b(?:user|recipient|mailbox|address|account|alias|member|subscriber|addressee|login|userid\
            |username) ~3 (?:unknown|not (?:found|known|exist|listed|recogni|a valid|valid|registered|in |defined\
            |local|here))
        \b(?:user|recipient|mailbox|address|account|alias|member|subscriber|addressee|customer) ~3 (?:does|do|did\
            |could|can) ?(?:not|n't) (?:exist|be found|have|match)
        \b(?:user|recipient|mailbox|address|account) ~2 (?:isn't|doesn't|couldn't|invalid|undeliverable|nonexist\
            |non-exist)
        \b(?:unknown|no such|nonexistent|non-existent|no|unrecogni[sz]ed) ~2 (?:user|recipient|mailbox|alias|person\
            |addressee|mail ?drop|subscriber|userid|username|inbox|account|group)\b
        \b(?:invalid|bad|incorrect|wrong|not a valid|illegal|unrouteable|unroutable|undeliverable) ~1 (?:user\
            |recipient|mailbox|address|account|alias|addressee|userid|username|inbox)
        user[- ]?unknown
        not (?:listed|found) in
        (?:n't|not|no longer) have ~3 (?:account|mailbox)
        nobody ~1 (?:by|with|named)
        no(?: ?one|body)? by that
        not our customer
        (?:is|are) not (?:known|one of)
        (?:not|n't|never) exist
        (?:address|mailbox|user) not found
        (?:wasn't|couldn't be|can't be|cannot be|not be) found
        (?:unknown|undefined) ~2 mail ?box
        (?:verify|check|make sure) ~4 address ~1 (?:is correct|and|correct|for|or)
        recipnotfound
        nosuchuser
        no mailbox
        unbekannt|existiert nicht|kein (?:benutzer|empfänger|postfach)|nicht gefunden
        (?:utilisateur|destinataire|adresse|compte|boîte) .{0,40}(?:inconnu|introuvable|n'existe|invalide|erron)
        (?:utente|casella|destinatario|indirizzo) .{0,40}(?:sconosciut|inesistent|non (?:esiste|trovat|valid))
        (?:usuario|usuário|destinat[aá]rio|direcci[oó]n|endereço|cuenta|conta|buz[oó]n) .{0,40}(?:desconocid\
            |desconhecid|n[oã]o? existe|inv[aá]lid|no (?:se )?(?:ha )?(?:encontr)|inexistente|encontrad)
        (?:gebruiker|ontvanger|adres|geadresseerde) .{0,30}(?:onbekend|bestaat niet|niet gevonden)
        nie istnieje|nieznany|brak takiego
        (?:пользовател|адрес|ящик|получател|аккаунт)\w* .{0,50}(?:не (?:найден|существует|зарегистрирован)\
            |отсутствует|неизвест)
        нет так(?:ого|ой)
        (?:ユーザ|アドレス|宛先|メールボックス|ディレクトリ|受信者).{0,30}(?:不明|見つか[りら]|存在し(?:ない|ませ)|ありません|誤り|正しく)
        見つかり?(?:ません|らない)
        (?:用户|用戶|使用者|收件人|收信人|地址|邮箱|信箱|帐号|帳號).{0,20}(?:不存在|未知|不正确|错误|錯誤|无效|無效|没有找到|找不到)
        (?:사용자|수신자|주소|계정|메일).{0,20}(?:없|찾을 수|존재하지|확인되지)
    """)),
    ("1.6", _any(r"""
        (?:has|have) moved
        no longer (?:at|with|works?|employ|on)
        mailbox ~1 moved
        new address
    """)),
    # The mailbox is there and out of use
    ("2.1", _any(r"""
        \b(?:account|mailbox|user|address|recipient|member|customer|login|inbox) ~3 (?:disabled|suspended|inactive\
            |deactivated|discontinued|locked|closed|cancell?ed|terminated|expired|not active|unavailable|dormant\
            |frozen|not accepting|deleted|removed)
        \b(?:disabled|suspended|inactive|deactivated|discontinued|locked|closed|terminated|expired|deleted\
            |unavailable) ~1 (?:user|account|mailbox|address|recipient|member|customer)
        is (?:currently |temporarily )?(?:disabled|suspended|inactive|deactivated|dormant)
        no longer (?:active|in use|available|accepts?|valid|used)
        not (?:currently )?(?:accepting|receiving) ~1 (?:mail|messages|e-?mail)
        mailbox ~1 unavailable
        deaktiviert|gesperrt
        désactivé
        disattivat|sospes[ao]
        desactivad|suspendid
        заблокирован|отключен|неактив
        停用|禁用|冻结|凍結
        휴면|정지된
    """)),
    # Whoever sent it is unknown
    ("1.8", _any(r"""
        (?:sender|helo|ehlo|client|your) ~2 (?:domain|host|hostname|address) ~2 (?:rejected|not found|does ?n[o']t\
            |not exist|not resolve|invalid|unknown|verif)
        invalid (?:sender|helo|domain name)
        cannot find your ~1 hostname
    """)),
    # There is no such domain or host
    ("1.2", _any(r"""
        \b(?:host|domain|hostname|name server|name service|mail exchanger|mx|server) ~4 (?:not found|unknown\
            |(?:could|can) ?n[o']t be found|not resolve|not exist|nxdomain)
        \b(?:unknown|no such|non-?existent|bad|invalid|unrouteable|unresolvable) ~1 (?:host|domain\
            |destination system|mx|relay domain|fqdn|server)
        nxdomain
        no ~1 (?:mx|dns|mail exchanger) ~1 (?:record|host|entr|found)
        (?:could|can) ?n[o']t (?:find|resolve) ~2 (?:host|mail exchanger|mx|domain)
        name or service not known
        null mx
        (?:domain|host|server) (?:\S+ )?(?:does|did|has|is) ?n[o']t
        (?:does ?n[o']t|not) (?:receive|accept|handle)(?: any)? (?:e-?)?mail
        dns (?:error|lookup|failure)
        host lookup
        ドメイン.{0,20}(?:見つか|存在|不明|誤)
        домен .{0,30}не (?:найден|существует)
        域名.{0,8}(?:不存在|无法|錯誤|错误)
    """)),
    ("4.6", _any(r"""
        (?:mail|routing|forward\w*) loop
        loops? (?:back|detect|to)
        looping
        too many (?:hops|received)
        hop count
        maximum hop
    """)),
    # Whoever sent it, or what is in it, is not wanted
    ("7.1", _any(r"""
        \b(?:spf|dkim|dmarc|dnsbl|rbl)\b
        sender policy
        authenticat\w+ (?:is |was )?(?:required|fail|check)
        unauthenticated
        (?:black|block) ?list
        blocked
        listed (?:at|in|on|by)
        \bspam|\bjunk|\bunsolicited|\bube\b
        bulk (?:mail|email)
        reputation
        relay(?:ing)? (?:access )?(?:denied|not|prohibited|is)
        unable to relay
        not (?:permitted|allowed|authori[sz]ed)
        virus|malware|infected|phish
        polic(?:y|ies)
        (?:access|permission) (?:is |was )?denied
        (?:sender|client|host|ip) ~2 (?:rejected|denied|refused|banned)
        \bptr\b
        reverse (?:dns|lookup|hostname)
        not accepted
        rejected ~3 (?:filter|content|administrat)
        content ~1 (?:rejected|filter|denied)
        restricted|moderat
        members[- ]only|only ~1 members
        permission to post
        posting
        (?:message|mail|email) (?:was |has been |is )?(?:rejected|refused)
        ask your ~2 (?:postmaster|admin|provider)
        unerwünscht|abgelehnt|abgewiesen|zurückgewiesen
        отклонен|запрещен|спам
        被拒|垃圾
        指定受信|拒否
    """)),
    ("1.1", _any(r"""
        (?:recipient|address|user|mailbox) ~2 rejected
        (?:check|verify|confirm) ~3 (?:recipient|address|spelling)
        typo
    """)),
    # It could not be brought there
    ("4.1", _any(r"""
        connect\w* ~5 (?:refused|timed? ?out|time-?out|failed|reset|lost|dropped|closed|unsuccessful)
        (?:could not|cannot|can't|couldn't|unable to|wasn't able to|failed to|not able to) ~1 (?:connect|reach\
            |contact|establish|open)
        no (?:route|response|answer|connection)
        network ~1 (?:unreachable|error|failure|problem|down)
        host ~2 (?:unreachable|down|not respond|unavailable)
        time[d ]?[- ]?out
        not respond
        did ?n[o']t (?:accept|respond|answer)
        (?:server|service) (?:is )?(?:temporarily )?(?:busy|unavailable|down|not available)
        接続(?:でき|が|に失敗)
        соединени
        连接|連線|連接
    """)),
    ("6.0", _any(r"""
        (?:illegal|invalid|malformed|bad|missing|duplicate|unsupported|improper) ~1 (?:content|mime|header\
            |attachment|encoding|character|date|from\b)
        attachment
        8-?bit
        bare (?:lf|cr|newline)
        \brfc ?\d{3,4}
        non-?ascii
        smtputf8
    """)),
    ("1.3", _any(r"""
        (?:syntax|malformed|format|parse|incorrectly constructed) ~3 (?:address|recipient|error)
        address(?:es)? ~4 (?:incorrectly constructed|malformed|syntax)
        domain missing
    """)),
    ("4.4", _any(r"""
        (?:cannot|unable to|could not) (?:be )?route
        routing (?:error|problem|failure)
        misconfigur
        config(?:uration)? (?:error|problem)
    """)),
    ("3.0", _any(r"""
        (?:system|internal|local|server|software|mailer|disk|i/o|file|database|lookup|fatal|unexpected) ~1 (?:error\
            |failure|problem)
        (?:can't|cannot|could not) (?:create|open|write|append|update)
        command (?:failed|died|output)
        exit(?:ed)? (?:status|code|with)
        no such file
        read-only file
        out of memory
        service unavailable
        pipe to
        procmail|maildrop|vdelivermail|local delivery
    """)),
)  # fmt: skip

# That it did not arrive, without a why.
FAILED = _any(r"""
    (?:not|n't|never|cannot|unable to|failed to|impossible to) ~3 (?:deliver|sent\b|send\b|transmit|reach|receive)
    undeliver|non-?deliver
    deliver\w* ~5 (?:fail|error|problem|abort|impossible|unsuccessful|refused|rejected)
    (?:fail|error|problem|trouble|unsuccessful)\w* ~4 (?:deliver|send|sent|recipient)
    (?:returned|returning|bounced|rejected|blocked) (?:to|by|your|mail|message|for|recipient)
    (?:permanent|fatal) ~1 (?:error|fail)
    did not (?:reach|exactly match)
    (?:address|recipient|message)\S* ~3 (?:fail|errors?\b|rejected|returned|bounced|blocked)
    (?:error|failure) (?:message|reason|description|code|occurred|type)
    (?:giving|given|gave) up
    nicht ~1 (?:zugestellt|ausgeliefert|übermittelt|zustell)
    unzustellbar|fehlgeschlagen
    non ~2 (?:remis|distribu|délivr|livr|recapita|consegna)
    n'a (?:pas )?(?:pu )?(?:pas )?(?:être |été )?\S* ?(?:remis|distribu|délivr|livr)
    échec|impossibile
    no ~3 entregad
    no se (?:pudo|puede|ha podido)
    não ~3 entreg
    falh(?:a|ou)
    niet ~1 (?:bezorgd|afgeleverd)
    mislukt
    (?:inte|ikke) ~1 lever
    nie ~2 dostarcz
    не ~3 достав
    недостав
    送(?:信|達|る)(?:でき|に失敗|されま|することが|ことができ|出来)
    (?:配信|配送|配達|届け)(?:でき|に失敗|されま|することが|られ|出来)
    失敗し|エラー
    (?:无法|無法|不能|未能|没有)\S{0,12}(?:投递|投遞|传递|傳遞|送达|送達|发送|傳送|递送|遞送)
    失败|失敗|退回
    (?:배달|전송|전달|발송)(?:되지|할 수|에 실패|하지)|실패
""" + _NOT_DELIVERED)  # fmt: skip

# That it has not arrived yet.
DELAYED = _any(r"""
    not yet been ~1 delivered
    not been ~1 delivered (?:yet|after|within|for \d)
    not yet (?:been )?delivered
    (?:delivery|message|mail)\S* ~4 (?:delayed|postponed|deferred)
    will (?!not\b|no )(?:be |continue |keep )?(?:\w+ )?(?:re-?tr(?:y|ied)|trying)
    will attempt to deliver
    will be attempted
    still being retried
    (?:this is|just) (?:only )?an? (?:warning|advisory)
    warning (?:message )?only
    temporary failure report
    attempts will continue
    no action is required
    do not need to re-?send
    (?<!not )(?<!n't )continue (?:to )?(?:try|attempt|retry)
    could not send ~2 for (?:past|the last)
    (?<!not )(?<!n't )keep trying
    verzögert|verzögerung
    retard(?:é|ée)|différé
    retrasad|demorad|atrasad
    ritardat
    vertraagd
    задерж
    遅延|再送(?:信)?を?(?:試み|続け|行い|いたし|中)
    延迟|延遲
    지연
""")  # fmt: skip

# That it may work another time, whatever else is said
TEMPORARILY = _any(r"""
    temporary (?:failure|error|problem|condition)
    transient (?:failure|error|problem)
""")  # fmt: skip

# or if nothing else is.
TEMPORARY = _any(r"""
    \btemporar
    transient
    again later
    try later
    später (?:erneut|noch ?einmal|wieder|nochmal)
    (?:réessay|renouvel)\w* ~3 (?:plus tard|ultérieurement)
    intent\w* ~4 más tarde
    tente ~4 mais tarde
    riprov\w* ~3 più tardi
    probeer ~3 later
    spróbuj ~3 później
    (?:попробуйте|повторите|спробуйте) ~3 (?:поз(?:же|днее)|пізніше)
    (?:しばらく|時間をおい|時間を置い).{0,16}(?:再度|もう一度|から)
    vorübergehend
    temporaire
    temporal
    временн
    一時的
    暂时|暫時|稍后|稍後
""")  # fmt: skip

# That it did arrive.
DELIVERED = _any(r"""
    (?:was|were|been|is) (?:successfully |also )?(?:delivered|relayed|received) (?:successfully|to)
    successfully (?:delivered|relayed|received|sent)
    delivery ~4 (?:successful|succeeded)
    return receipt
    delivered (?:successfully|to (?:the )?(?:mailbox|following))
    (?:erfolgreich|wurde) (?:zugestellt|übermittelt)
    a été (?:\w+ )?remis
    配信(?:され|完了|しました)
    投递成功|成功(?:送达|投递)
""")  # fmt: skip
