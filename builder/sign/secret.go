package sign

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/scrypt"
)

// ErrPassword is asked-for and wrong passwords alike.
var ErrPassword = errors.New("wrong password")

// SecretKey makes signatures.
type SecretKey struct {
	id  KeyID
	key ed25519.PrivateKey
}

const (
	secretLen = 158 // bytes of a secret key's second line: minisign.h, SeckeyStruct
	// minisign's cost of a password: opslimit and memlimit "sensitive" of libsodium,
	// which come to scrypt's N = 2^20, r = 8, p = 1, and 1 GiB of memory.
	opsLimit = 33554432
	memLimit = 1 << 30
)

// Generate makes a key pair.
func Generate() (SecretKey, error) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return SecretKey{}, err
	}
	s := SecretKey{key: key}
	// Derived instead of drawn: one key never has two names.
	sum := blake2b.Sum256(pub)
	copy(s.id[:], sum[:])
	return s, nil
}

// Public is the other half.
func (s SecretKey) Public() PublicKey {
	k := PublicKey{ID: s.id}
	copy(k.Key[:], s.key[32:])
	return k
}

// ParseSecretKey reads a secret key's file. password is called where the key is
// encrypted, which costs a gigabyte of memory for a second; nil refuses those.
func ParseSecretKey(text []byte, password func() ([]byte, error)) (SecretKey, error) {
	const what = "a secret key"
	line, err := lines(text, 1, what)
	if err != nil {
		return SecretKey{}, err
	}
	raw, err := decode(line[0], secretLen, what)
	if err != nil {
		return SecretKey{}, err
	}
	// algorithm, KDF, checksum's algorithm, salt[32], opslimit, memlimit, then
	// key ID[8], secret[64], checksum[32], which are encrypted together.
	if [2]byte(raw) != algLegacy || string(raw[4:6]) != "B2" {
		return SecretKey{}, fmt.Errorf("a secret key of the algorithms %q and %q; Ed and B2 are known", raw[:2], raw[4:6])
	}
	box := raw[54:]
	switch kdf := string(raw[2:4]); kdf {
	case "\x00\x00":
	case "Sc":
		if password == nil {
			return SecretKey{}, errors.New("the secret key is encrypted: its password is needed")
		}
		stream, err := derive(raw[6:38], binary.LittleEndian.Uint64(raw[38:]), binary.LittleEndian.Uint64(raw[46:]), password)
		if err != nil {
			return SecretKey{}, err
		}
		for i := range box {
			box[i] ^= stream[i]
		}
	default:
		return SecretKey{}, fmt.Errorf("a secret key with the key derivation %q; none and Sc are known", kdf)
	}
	s := SecretKey{key: bytes.Clone(box[8:72])}
	copy(s.id[:], box)
	// minisign -W leaves the checksum of a key in the clear zero.
	encrypted := string(raw[2:4]) == "Sc"
	if sum := s.checksum(); !bytes.Equal(sum[:], box[72:]) && (encrypted || !bytes.Equal(box[72:], make([]byte, 32))) {
		if encrypted {
			return SecretKey{}, ErrPassword
		}
		return SecretKey{}, errors.New("the secret key is damaged: its checksum does not fit")
	}
	// The second half must be the first one's public key, else signing would
	// give the secret away.
	if !bytes.Equal(ed25519.NewKeyFromSeed(s.key[:32]), s.key) {
		return SecretKey{}, errors.New("the secret key is damaged: its halves do not fit")
	}
	return s, nil
}

// derive is libsodium's crypto_pwhash_scryptsalsa208sha256 with its way of
// choosing parameters (pickparams).
func derive(salt []byte, ops, mem uint64, password func() ([]byte, error)) ([]byte, error) {
	if ops > opsLimit || mem > memLimit || ops < 32768 || mem < 1<<14 {
		return nil, fmt.Errorf("the secret key's password costs %d operations and %d bytes; at most %d and %d are taken", ops, mem, opsLimit, memLimit)
	}
	const r = 8
	p := uint64(1)
	var n int
	if ops < mem/32 {
		n = log2(ops / (r * 4))
	} else {
		n = log2(mem / (r * 128))
		p = min(ops/4>>n, 0x3fffffff) / r
	}
	pass, err := password()
	if err != nil {
		return nil, err
	}
	return scrypt.Key(pass, salt, 1<<n, r, int(max(p, 1)), 104)
}

// log2 is the exponent that pickparams finds: the first n from 1 on with
// 2^n > max/2.
func log2(max uint64) int { return bits.Len64(max / 2) }

func (s SecretKey) checksum() [32]byte {
	b := append(append(algLegacy[:], s.id[:]...), s.key...)
	return blake2b.Sum256(b)
}

// File is the content of a secret key's file: in the clear where the password
// is empty, as minisign -W makes it.
func (s SecretKey) File(password []byte) ([]byte, error) {
	return s.file(password, opsLimit, memLimit)
}

func (s SecretKey) file(password []byte, ops, mem uint64) ([]byte, error) {
	raw := make([]byte, 54, secretLen)
	copy(raw, "Ed\x00\x00B2")
	sum := s.checksum()
	box := append(append(append([]byte(nil), s.id[:]...), s.key...), sum[:]...)
	if len(password) > 0 {
		copy(raw[2:], "Sc")
		rand.Read(raw[6:38])
		binary.LittleEndian.PutUint64(raw[38:], ops)
		binary.LittleEndian.PutUint64(raw[46:], mem)
		stream, err := derive(raw[6:38], ops, mem, func() ([]byte, error) { return password, nil })
		if err != nil {
			return nil, err
		}
		for i := range box {
			box[i] ^= stream[i]
		}
	}
	kind := "minisign encrypted secret key"
	if len(password) == 0 {
		kind = "minisign unencrypted secret key"
	}
	return []byte(untrusted + kind + "\n" + base64.StdEncoding.EncodeToString(append(raw, box...)) + "\n"), nil
}

// Sign signs a message, prehashed as minisign does by default, or legacy.
func (s SecretKey) Sign(message []byte, trustedComment string, legacy bool) (Signature, error) {
	if err := CheckComment(trustedComment); err != nil {
		return Signature{}, err
	}
	sig := Signature{
		Untrusted: "signature from smolvmm's secret key", Trusted: trustedComment,
		ID: s.id, Prehashed: !legacy,
	}
	copy(sig.sig[:], ed25519.Sign(s.key, digested(message, !legacy)))
	copy(sig.global[:], ed25519.Sign(s.key, append(sig.sig[:], trustedComment...)))
	return sig, nil
}
