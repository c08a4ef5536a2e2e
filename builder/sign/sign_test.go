package sign

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func generate(t testing.TB) SecretKey {
	t.Helper()
	k, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSignAndVerify(t *testing.T) {
	key, other := generate(t), generate(t)
	message := []byte("the image's description")
	for _, legacy := range []bool{false, true} {
		sig, err := key.Sign(message, "timestamp:1\timage:web:1.0", legacy)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseSignature(sig.File())
		if err != nil || back != sig {
			t.Fatalf("%+v came back as %+v, %v", sig, back, err)
		}
		pub, err := ParsePublicKey(key.Public().File())
		if err != nil || pub != key.Public() {
			t.Fatalf("%+v, %v", pub, err)
		}
		if line, err := ParsePublicKey([]byte(pub.String())); err != nil || line != pub {
			t.Fatalf("%+v, %v", line, err)
		}
		if err := pub.Verify(message, back); err != nil {
			t.Error(err)
		}
		if err := pub.Verify([]byte("the image's Description"), back); !errors.Is(err, ErrSignature) {
			t.Errorf("another message: %v", err)
		}
		if err := other.Public().Verify(message, back); !errors.Is(err, ErrKey) {
			t.Errorf("another key: %v", err)
		}
		forged := other.Public()
		forged.ID = pub.ID
		if err := forged.Verify(message, back); !errors.Is(err, ErrSignature) {
			t.Errorf("another key under the same name: %v", err)
		}
		comment := back
		comment.Trusted = "timestamp:2\timage:web:1.0"
		if err := pub.Verify(message, comment); !errors.Is(err, ErrSignature) || !strings.Contains(err.Error(), "trusted comment") {
			t.Errorf("another trusted comment: %v", err)
		}
		flip := back
		flip.Prehashed = !flip.Prehashed
		if err := pub.Verify(message, flip); !errors.Is(err, ErrSignature) {
			t.Errorf("the other algorithm: %v", err)
		}
	}
	if _, err := key.Sign(message, "two\nlines", false); err == nil {
		t.Error("a comment of two lines was signed")
	}
}

func TestParseRefuses(t *testing.T) {
	key := generate(t)
	sig, err := key.Sign([]byte("m"), "c", false)
	if err != nil {
		t.Fatal(err)
	}
	good := string(sig.File())
	line := strings.Split(good, "\n")
	for name, bad := range map[string]string{
		"empty":          "",
		"too long":       strings.Repeat("x", MaxFile+1),
		"no comment":     strings.Join(line[1:], "\n"),
		"too many lines": good + "more\n",
		"short":          line[0] + "\n" + line[1][:20] + "\n" + line[2] + "\n" + line[3],
		"algorithm":      line[0] + "\n" + base64.StdEncoding.EncodeToString(make([]byte, 74)) + "\n" + line[2] + "\n" + line[3],
		"not trusted":    line[0] + "\n" + line[1] + "\nx" + line[2] + "\n" + line[3],
		"no global":      line[0] + "\n" + line[1] + "\n" + line[2] + "\nAAAA",
		"escape":         line[0] + "\n" + line[1] + "\n" + line[2] + "\x1b[2J\n" + line[3],
	} {
		if _, err := ParseSignature([]byte(bad)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	if _, err := ParsePublicKey([]byte(good)); err == nil {
		t.Error("a signature was read as a key")
	}
	raw := append([]byte("XX"), make([]byte, 40)...)
	if _, err := ParsePublicKey([]byte(base64.StdEncoding.EncodeToString(raw))); err == nil {
		t.Error("a key of another algorithm was read")
	}
}

func TestSecretKey(t *testing.T) {
	key := generate(t)
	file, err := key.File(nil)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseSecretKey(file, nil)
	if err != nil || !bytes.Equal(back.key, key.key) || back.id != key.id {
		t.Fatalf("%v", err)
	}
	_, body, _ := strings.Cut(strings.TrimSpace(string(file)), "\n")
	raw, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name, want string, spoil func(b []byte)) {
		b := bytes.Clone(raw)
		spoil(b)
		text := untrusted + "x\n" + base64.StdEncoding.EncodeToString(b)
		if _, err := ParseSecretKey([]byte(text), func() ([]byte, error) { return []byte("x"), nil }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refuse("checksum", "checksum", func(b []byte) { b[60]++ })
	refuse("halves", "halves", func(b []byte) {
		k := SecretKey{key: b[62:126]}
		copy(k.id[:], b[54:])
		b[100]++
		sum := k.checksum()
		copy(b[126:], sum[:])
	})
	refuse("algorithm", "algorithms", func(b []byte) { b[0] = 'X' })
	refuse("derivation", "derivation", func(b []byte) { b[2] = 'X' })
	refuse("memory", "costs", func(b []byte) { copy(b[2:], "Sc"); b[45], b[53] = 1, 1 })
	cheap := func(b []byte) { // what libsodium calls the interactive minimum
		copy(b[2:], "Sc")
		b[39], b[47] = 0x80, 0x40
	}
	refuse("password", "password", cheap)
}

// minisign runs Debian's package; it is the judge of all formats.
func minisign(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("NOT RUN: minisign is not installed (Debian's package minisign): the formats were held against themselves only")
	}
	if out, err := exec.Command("minisign", args...).CombinedOutput(); err != nil {
		t.Fatalf("minisign %q: %v\n%s", args, err, out)
	}
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMinisignVerifiesOurs and the next hold the formats against minisign.
func TestMinisignVerifiesOurs(t *testing.T) {
	dir := t.TempDir()
	key := generate(t)
	pub := write(t, filepath.Join(dir, "k.pub"), key.Public().File())
	file := write(t, filepath.Join(dir, "m"), []byte(`{"architecture":"amd64"}`))
	for _, legacy := range []bool{false, true} {
		sig, err := key.Sign(read(t, file), "timestamp:1700000000\timage:web:1.0", legacy)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file+".minisig", sig.File())
		minisign(t, "-V", "-p", pub, "-m", file)
		minisign(t, "-V", "-P", key.Public().String(), "-m", file)
	}
	// Our secret key signs in minisign's hands.
	clear, err := key.File(nil)
	if err != nil {
		t.Fatal(err)
	}
	minisign(t, "-S", "-s", write(t, filepath.Join(dir, "k.key"), clear), "-m", file, "-t", "of minisign's making")
	sig, err := ParseSignature(read(t, file+".minisig"))
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Public().Verify(read(t, file), sig); err != nil || sig.Trusted != "of minisign's making" {
		t.Errorf("%q, %v", sig.Trusted, err)
	}
}

// TestPassword has minisign sign with a key that we encrypted, at a cost that a
// test can pay.
func TestPassword(t *testing.T) {
	dir := t.TempDir()
	key := generate(t)
	text, err := key.file([]byte("correct horse"), 1<<19, 1<<24)
	if err != nil {
		t.Fatal(err)
	}
	asked := func(p string) func() ([]byte, error) { return func() ([]byte, error) { return []byte(p), nil } }
	if back, err := ParseSecretKey(text, asked("correct horse")); err != nil || !bytes.Equal(back.key, key.key) {
		t.Fatal(err)
	}
	if _, err := ParseSecretKey(text, asked("wrong")); !errors.Is(err, ErrPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	if _, err := ParseSecretKey(text, nil); err == nil || !strings.Contains(err.Error(), "password is needed") {
		t.Errorf("no password: %v", err)
	}
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("NOT RUN: minisign is not installed (Debian's package minisign)")
	}
	file := write(t, filepath.Join(dir, "m"), []byte("message"))
	cmd := exec.Command("minisign", "-S", "-s", write(t, filepath.Join(dir, "k.key"), text), "-m", file)
	cmd.Stdin = strings.NewReader("correct horse\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	sig, err := ParseSignature(read(t, file+".minisig"))
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Public().Verify([]byte("message"), sig); err != nil {
		t.Error(err)
	}
}

func TestWeVerifyMinisigns(t *testing.T) {
	dir := t.TempDir()
	pub, sec := filepath.Join(dir, "k.pub"), filepath.Join(dir, "k.key")
	minisign(t, "-G", "-W", "-p", pub, "-s", sec)
	file := write(t, filepath.Join(dir, "m"), []byte("message"))
	key, err := ParsePublicKey(read(t, pub))
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"-H", "-l"} {
		minisign(t, "-S", how, "-s", sec, "-m", file)
		sig, err := ParseSignature(read(t, file+".minisig"))
		if err != nil {
			t.Fatal(err)
		}
		if sig.Prehashed != (how == "-H") {
			t.Errorf("minisign %s is prehashed: %v", how, sig.Prehashed)
		}
		if err := key.Verify(read(t, file), sig); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(sig.File(), read(t, file+".minisig")) {
			t.Errorf("%q is written as %q", read(t, file+".minisig"), sig.File())
		}
	}
	secret, err := ParseSecretKey(read(t, sec), nil)
	if err != nil || secret.Public() != key {
		t.Errorf("%+v, %v", secret.Public(), err)
	}
	if !bytes.Equal(key.File(), read(t, pub)) {
		t.Errorf("%q is written as %q", read(t, pub), key.File())
	}
}

func FuzzSignature(f *testing.F) {
	key := generate(f)
	sig, err := key.Sign([]byte("m"), "timestamp:1\timage:web", false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sig.File())
	old, err := key.Sign([]byte("m"), "", true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(old.File())
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSignature(text)
		if err != nil {
			return
		}
		again, err := ParseSignature(s.File())
		if err != nil || again != s {
			t.Fatalf("%q: %+v written is %+v, %v", text, s, again, err)
		}
		if key.Public().Verify([]byte("another message"), s) == nil {
			t.Fatalf("%q was taken for another message", text)
		}
	})
}

func FuzzKey(f *testing.F) {
	key := generate(f)
	file, err := key.File(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add(key.Public().File())
	f.Add([]byte(key.Public().String()))
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := ParsePublicKey(text); err == nil {
			if again, err := ParsePublicKey(k.File()); err != nil || again != k {
				t.Fatalf("%+v, %v", again, err)
			}
		}
		if k, err := ParseSecretKey(text, nil); err == nil {
			s, err := k.Sign([]byte("m"), "c", false)
			if err != nil || k.Public().Verify([]byte("m"), s) != nil {
				t.Fatal("a key that was read does not sign")
			}
		}
	})
}
