//go:build !linux && !darwin

package lineedit

import (
	"errors"
	"os"
)

func rawMode(*os.File) (func() error, error) {
	return nil, errors.New("there is no line editor for this system")
}

func stopSelf() {}

func watchSize(func()) (stop func()) { return func() {} }
