// Package sign makes and checks signatures in minisign's formats (minisign's
// manual, "Signature format", "Public key format", "Secret key format"), so that
// minisign and signify's users can check what smolvmm signs, and the other way
// round. It does no I/O.
package sign

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/blake2b"
)

// MediaType is a signature file's in a registry.
const MediaType = "application/vnd.smolvmm.signature.minisign.v1"

// What an error of Verify can be about, for errors.Is.
var (
	ErrKey       = errors.New("made by another key")
	ErrSignature = errors.New("the signature does not fit")
)

// Algorithms of minisign: over the message itself, or over its BLAKE2b-512.
var (
	algLegacy    = [2]byte{'E', 'd'}
	algPrehashed = [2]byte{'E', 'D'}
)

const (
	untrusted = "untrusted comment: "
	trusted   = "trusted comment: "

	// MaxFile bounds a file of any of the formats, bytes. minisign's own bounds are
	// 1024 for an untrusted comment and 8192 for a trusted one.
	MaxFile    = 12 << 10
	maxComment = 8192
)

// KeyID tells keys apart; it is written as minisign does, a little-endian number.
type KeyID [8]byte

// String is 16 upper-case hexadecimal digits.
func (k KeyID) String() string { return fmt.Sprintf("%016X", binary.LittleEndian.Uint64(k[:])) }

// PublicKey checks signatures.
type PublicKey struct {
	ID  KeyID
	Key [ed25519.PublicKeySize]byte
}

// ParsePublicKey reads a public key's file, or its second line alone, as minisign's -P takes it.
func ParsePublicKey(text []byte) (PublicKey, error) {
	var k PublicKey
	line, err := lines(text, 1, "a public key")
	if err != nil {
		return k, err
	}
	raw, err := decode(line[0], 42, "a public key")
	if err != nil {
		return k, err
	}
	if [2]byte(raw) != algLegacy {
		return k, fmt.Errorf("a public key of the algorithm %q; Ed is known", raw[:2])
	}
	copy(k.ID[:], raw[2:])
	copy(k.Key[:], raw[10:])
	return k, nil
}

// String is the key on one line, as minisign's -P takes it.
func (k PublicKey) String() string {
	return base64.StdEncoding.EncodeToString(append(append(algLegacy[:], k.ID[:]...), k.Key[:]...))
}

// File is the content of a .pub file.
func (k PublicKey) File() []byte {
	return []byte(untrusted + "minisign public key " + k.ID.String() + "\n" + k.String() + "\n")
}

// Signature is a signature file that was read. Its comments are for people:
// Trusted is covered by the signature, Untrusted is not.
type Signature struct {
	Untrusted, Trusted string
	ID                 KeyID // of the key that made it
	Prehashed          bool  // over BLAKE2b-512 of the message
	sig, global        [ed25519.SignatureSize]byte
}

// ParseSignature reads a .minisig file.
func ParseSignature(text []byte) (Signature, error) {
	var s Signature
	const what = "a signature"
	line, err := lines(text, 3, what)
	if err != nil {
		return s, err
	}
	raw, err := decode(line[0], 74, what)
	if err != nil {
		return s, err
	}
	switch [2]byte(raw) {
	case algLegacy:
	case algPrehashed:
		s.Prehashed = true
	default:
		return s, fmt.Errorf("a signature of the algorithm %q; Ed and ED are known", raw[:2])
	}
	copy(s.ID[:], raw[2:])
	copy(s.sig[:], raw[10:])
	comment, ok := strings.CutPrefix(line[1], trusted)
	if !ok {
		return s, fmt.Errorf("a signature's third line begins with %q", trusted)
	}
	s.Trusted = comment
	if raw, err = decode(line[2], ed25519.SignatureSize, what); err != nil {
		return s, err
	}
	copy(s.global[:], raw)
	first, _, _ := strings.Cut(string(text), "\n")
	s.Untrusted = strings.TrimSuffix(strings.TrimPrefix(first, untrusted), "\r")
	return s, nil
}

// File is the content of a .minisig file.
func (s Signature) File() []byte {
	alg := algLegacy
	if s.Prehashed {
		alg = algPrehashed
	}
	b64 := base64.StdEncoding.EncodeToString
	return []byte(untrusted + s.Untrusted + "\n" +
		b64(append(append(alg[:], s.ID[:]...), s.sig[:]...)) + "\n" +
		trusted + s.Trusted + "\n" + b64(s.global[:]) + "\n")
}

// Verify checks message and trusted comment. Its errors are ErrKey and ErrSignature.
func (k PublicKey) Verify(message []byte, s Signature) error {
	if s.ID != k.ID {
		return fmt.Errorf("%w: %v, not %v", ErrKey, s.ID, k.ID)
	}
	if !ed25519.Verify(k.Key[:], digested(message, s.Prehashed), s.sig[:]) {
		return fmt.Errorf("%w the signed bytes (key %v)", ErrSignature, k.ID)
	}
	if !ed25519.Verify(k.Key[:], append(s.sig[:], s.Trusted...), s.global[:]) {
		return fmt.Errorf("%w its trusted comment (key %v)", ErrSignature, k.ID)
	}
	return nil
}

func digested(message []byte, hash bool) []byte {
	if !hash {
		return message
	}
	sum := blake2b.Sum512(message)
	return sum[:]
}

// CheckComment tells whether a comment can stand on its line.
func CheckComment(s string) error {
	if len(s) > maxComment {
		return fmt.Errorf("a comment of %d bytes; at most %d are allowed", len(s), maxComment)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
		return errors.New("a comment with bytes that steer a terminal")
	}
	return nil
}

// lines gives the lines behind the untrusted comment; one line alone may lack it.
func lines(text []byte, want int, what string) ([]string, error) {
	if len(text) > MaxFile {
		return nil, fmt.Errorf("%s of %d bytes; at most %d are read", what, len(text), MaxFile)
	}
	body := strings.TrimSuffix(string(bytes.TrimSuffix(text, []byte("\n"))), "\r")
	all := strings.Split(body, "\n")
	for i := range all {
		all[i] = strings.TrimSuffix(all[i], "\r")
		if err := CheckComment(all[i]); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", what, i+1, err)
		}
	}
	switch {
	case len(all) == want+1 && strings.HasPrefix(all[0], untrusted):
		return all[1:], nil
	case want == 1 && len(all) == 1:
		return all, nil
	}
	return nil, fmt.Errorf("this is not %s in minisign's format: want %q and %d more lines", what, untrusted, want)
}

func decode(s string, want int, what string) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != want {
		return nil, fmt.Errorf("this is not %s in minisign's format: want %d bytes in base64", what, want)
	}
	return raw, nil
}
