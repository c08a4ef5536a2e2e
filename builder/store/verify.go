package store

import (
	"errors"
	"fmt"

	"github.com/smolvmm/smolvmm/builder/sign"
)

// Verify tells whether one of the keys has signed the image: its description,
// and with that the digests of disk, kernel and tree. It gives the signature.
// The error is ErrUnsigned.
func (e *Entry) Verify(keys []sign.PublicKey) (sign.Signature, error) {
	if e.Err != nil {
		return sign.Signature{}, e.Err
	}
	s, err := findSignature(e.Document, e.Signatures, keys)
	if err != nil {
		return s, fmt.Errorf("image %s: %w", e.Name(), err)
	}
	return s, nil
}

// VerifyDocument is Verify for a description that is not in a store. Without
// keys all is well.
func VerifyDocument(doc []byte, files [][]byte, keys []sign.PublicKey) error {
	if len(keys) == 0 {
		return nil
	}
	_, err := findSignature(doc, files, keys)
	return err
}

func findSignature(doc []byte, files [][]byte, keys []sign.PublicKey) (sign.Signature, error) {
	if len(keys) == 0 {
		return sign.Signature{}, fmt.Errorf("%w: no key was given", ErrUnsigned)
	}
	why := fmt.Errorf("there is no signature at all")
	for _, file := range files {
		s, err := sign.ParseSignature(file)
		if err != nil {
			why = err
			continue
		}
		for _, k := range keys {
			err := k.Verify(doc, s)
			if err == nil {
				return s, nil
			}
			// A signature of the right key that does not fit tells more than others.
			if !errors.Is(why, sign.ErrSignature) {
				why = err
			}
		}
	}
	return sign.Signature{}, fmt.Errorf("%w: %w", ErrUnsigned, why)
}
