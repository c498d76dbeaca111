"""Check the evidence of a version with Python's standard library and openssl, without Enigma.

python verify_evidence.py DIRECTORY PUBLIC_KEY.pem
"""

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

version, key = Path(sys.argv[1]), sys.argv[2]
statements = {}
for file in sorted((version / "artifacts" / "evidence").glob("*.dsse.json")):
    envelope = json.loads(file.read_text(encoding="utf-8"))
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    # What DSSE signs: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    with tempfile.NamedTemporaryFile() as signature:
        signature.write(base64.b64decode(envelope["signatures"][0]["sig"]))
        signature.flush()
        command = ["openssl", "dgst", "-sha256", "-verify", key, "-signature", signature.name]
        subprocess.run(command, input=signed, check=True, stdout=subprocess.DEVNULL)
    statements[file.name] = json.loads(payload)
for entry in statements["version.dsse.json"]["subject"]:
    found = hashlib.sha256((version / entry["name"]).read_bytes()).hexdigest()
    if found != entry["digest"]["sha256"]:
        sys.exit(f"{entry['name']}: signed {entry['digest']['sha256']}, found {found}")
print(
    f"{len(statements)} envelopes and {len(statements['version.dsse.json']['subject'])} files: ok"
)
