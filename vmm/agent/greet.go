package agent

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Item is the fw_cfg item in which a guest finds its key, as Key.String has it.
const Item = "opt/smolvmm/agent"

// Key is what a machine's monitor and its guest have in common and nobody else:
// made for each start, given to the guest on the configuration port, kept in no
// file and on no command line.
type Key [32]byte

// NewKey makes a key.
func NewKey() (k Key) {
	_, _ = rand.Read(k[:]) // never fails
	return k
}

// String is the key in hexadecimal, for the item.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ParseKey reads what String gives.
func ParseKey(s string) (k Key, err error) {
	if hex.DecodedLen(len(s)) != len(k) {
		return k, fmt.Errorf("agent: a key has %d hexadecimal digits", hex.EncodedLen(len(k)))
	}
	if _, err = hex.Decode(k[:], []byte(s)); err != nil {
		return Key{}, errors.New("agent: a key has hexadecimal digits only")
	}
	return k, nil
}

// ErrKey: the other side has another key, or none.
var ErrKey = errors.New("agent: the other side does not have this machine's key")

// The greeting. Host: magic and a nonce. Guest: magic, its own nonce, and the
// proof. Host: its proof. The proofs differ by a word, so that neither can be
// sent back, and cover both nonces, so that neither can be repeated.
const (
	magic     = "smolvmm agent 1\n"
	nonceSize = 16
	proofSize = sha256.Size
)

func proof(k Key, who string, host, guest []byte) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write([]byte(who))
	m.Write(host)
	m.Write(guest)
	return m.Sum(nil)
}

func nonce() []byte {
	n := make([]byte, nonceSize)
	_, _ = rand.Read(n)
	return n
}

// Greet is the host's side of the greeting. The caller bounds its time.
func Greet(rw io.ReadWriter, k Key) error {
	mine := nonce()
	if _, err := rw.Write(append([]byte(magic), mine...)); err != nil {
		return err
	}
	var b [len(magic) + nonceSize + proofSize]byte
	if _, err := io.ReadFull(rw, b[:]); err != nil {
		return err
	}
	if string(b[:len(magic)]) != magic {
		return protocolf("what answers is no agent of this version")
	}
	theirs := b[len(magic) : len(magic)+nonceSize]
	if !hmac.Equal(b[len(magic)+nonceSize:], proof(k, "guest", mine, theirs)) {
		return ErrKey
	}
	_, err := rw.Write(proof(k, "host", mine, theirs))
	return err
}

// Answer is the guest's side of the greeting.
func Answer(rw io.ReadWriter, k Key) error {
	var b [len(magic) + nonceSize]byte
	if _, err := io.ReadFull(rw, b[:]); err != nil {
		return err
	}
	if string(b[:len(magic)]) != magic {
		return protocolf("what calls is no host of this version")
	}
	theirs, mine := b[len(magic):], nonce()
	if _, err := rw.Write(append(append([]byte(magic), mine...), proof(k, "guest", theirs, mine)...)); err != nil {
		return err
	}
	var p [proofSize]byte
	if _, err := io.ReadFull(rw, p[:]); err != nil {
		return err
	}
	if !hmac.Equal(p[:], proof(k, "host", theirs, mine)) {
		return ErrKey
	}
	return nil
}
