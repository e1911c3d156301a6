package main

import (
	"errors"
	"fmt"
)

// Every exit code of every command. run is the exception: it returns its child's.
const (
	exitFine     = 0 // done as asked
	exitFailure  = 1 // it could not be done
	exitUsage    = 2 // the command line is wrong
	exitFindings = 3 // it was done, and what it found is bad: an invalid token, a missing protection, a denied request
)

// codeError is an error that ends the program with a code of its own. A nil Err says nothing more: the command
// has printed what there is to say.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// usage is an error of the command line.
func usage(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

// exit ends with a code after everything has been said.
func exit(code int) error {
	if code == exitFine {
		return nil
	}
	return &codeError{code: code}
}

func exitCode(err error) int {
	if err == nil {
		return exitFine
	}
	if ce, ok := errors.AsType[*codeError](err); ok {
		return ce.code
	}
	return exitFailure
}

// hinted is an error with a sentence beside it that says what to do.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}
