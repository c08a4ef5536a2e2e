package policy

import "encoding/binary"

// MaxHello is how many bytes of a stream ServerName looks at, at most. A
// ClientHello with post-quantum key shares has 2 KiB; one that is larger than
// this names no server.
const MaxHello = 16 << 10

// Of TLS 1.3, RFC 8446: record types (§5.1), the ClientHello (§4), server_name (§4.2, RFC 6066 §3).
const (
	recordFirst, recordLast = 20, 24 // change_cipher_spec to heartbeat (RFC 6520)
	recordHandshake         = 22
	recordHeader            = 5 // type, version, length
	maxRecord               = 1 << 14
	handshakeHello          = 1
	handshakeHeader         = 4 // type, length of 24 bits
	extensionServerName     = 0
	nameTypeHost            = 0
)

// ServerName reads the server's name out of the first bytes of a stream.
//
// need > 0: b is too short to tell; ask again when there are need bytes, which is
// more than b has and at most MaxHello. Otherwise ok says whether the stream is
// TLS, and name is the server that its ClientHello names, "" if it names none.
// Whatever begins as TLS counts as TLS, also where the rest cannot be read,
// where it goes on after MaxHello, or where it is SSL 2's hello: a server might
// understand more than this does.
func ServerName(b []byte) (name string, need int, ok bool) {
	if len(b) == 0 {
		return "", 1, false
	}
	b = b[:min(len(b), MaxHello)] // the same answer, however much comes at once
	if b[0]&0x80 != 0 {
		return sslv2(b)
	}
	if b[0] < recordFirst || b[0] > recordLast {
		return "", 0, false
	}
	// The version behind the type is to be ignored (RFC 8446 §5.1), and servers do.
	hello, need := handshake(b)
	if need > len(b) && need <= MaxHello {
		return "", need, false
	}
	return serverName(hello), 0, true
}

// sslv2 tells a ClientHello in SSL 2's form (RFC 5246 §E.2), which names nobody.
func sslv2(b []byte) (string, int, bool) {
	const typeAt, majorAt = 2, 3
	switch {
	case len(b) <= typeAt:
		return "", typeAt + 1, false
	case b[typeAt] != handshakeHello:
		return "", 0, false
	case len(b) <= majorAt:
		return "", majorAt + 1, false
	case b[majorAt] != 3 && b[majorAt] != 0: // it offers SSL 3 and later, or SSL 2 alone
		return "", 0, false
	}
	return "", 0, true
}

// handshake puts together the first handshake message out of records. Either it
// gives the body of a ClientHello, or nil: for good, or until there are need bytes.
func handshake(b []byte) (body []byte, need int) {
	var message []byte
	for at := 0; ; {
		if len(b) < at+recordHeader {
			return nil, at + recordHeader
		}
		length := int(binary.BigEndian.Uint16(b[at+3:]))
		if b[at] != recordHandshake || length == 0 || length > maxRecord {
			return nil, 0 // an empty record of a handshake is forbidden: RFC 8446 §5.1
		}
		at += recordHeader
		before := len(message)
		message = append(message, b[at:min(at+length, len(b))]...)
		want := handshakeHeader
		if len(message) >= handshakeHeader {
			if message[0] != handshakeHello {
				return nil, 0
			}
			want += int(message[1])<<16 + int(binary.BigEndian.Uint16(message[2:]))
			if len(message) >= want {
				return message[handshakeHeader:want], 0
			}
			if want > MaxHello {
				return nil, 0
			}
		}
		if at+length > len(b) {
			// Not more than the message, which may end before the record does.
			return nil, at + min(length, want-before)
		}
		at += length
	}
}

// reader takes vectors with a length before them; bad once something is missing.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) number(bytes int) int {
	n := 0
	for _, c := range r.take(bytes) {
		n = n<<8 | int(c)
	}
	return n
}

func (r *reader) vector(lengthBytes int) reader {
	n := r.number(lengthBytes)
	b := r.take(n)
	return reader{b: b, bad: r.bad}
}

// serverName reads a ClientHello's body; "" unless all of it is sound, so that
// no server reads another name out of it.
func serverName(hello []byte) string {
	r := reader{b: hello}
	r.take(2 + 32) // legacy_version, random
	r.vector(1)    // legacy_session_id
	r.vector(2)    // cipher_suites
	r.vector(1)    // legacy_compression_methods
	extensions := r.vector(2)
	if r.bad || len(r.b) > 0 {
		return ""
	}
	name, seen := "", false
	for len(extensions.b) > 0 {
		kind := extensions.number(2)
		data := extensions.vector(2)
		if extensions.bad {
			return ""
		}
		if kind != extensionServerName {
			continue // GREASE and ECH among them
		}
		if seen {
			return "" // never twice: RFC 8446 §4.2
		}
		seen = true
		if name = hostName(data); name == "" {
			return ""
		}
	}
	return name
}

// hostName reads a ServerNameList; servers differ in which of several names they
// take, so there has to be one.
func hostName(data reader) string {
	list := data.vector(2)
	kind := list.number(1)
	host := list.vector(2)
	if data.bad || list.bad || host.bad || len(data.b) > 0 || len(list.b) > 0 || kind != nameTypeHost {
		return ""
	}
	name := normal(string(host.b))
	if name == "" || len(name) > maxName {
		return ""
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return ""
		}
	}
	return name
}
