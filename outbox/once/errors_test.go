package once

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Of one outage each kind of error is told once, all are counted, and the next outage
// begins anew.
func TestErrors(t *testing.T) {
	t.Parallel()
	var e Errors
	n, _ := e.Over()
	require.Zero(t, n)
	for range 2 {
		require.True(t, e.Note(errors.New("publish 12 messages from 019b7e1c-5a00-7abc-8def-0123456789ab on: no answer")))
		require.False(t, e.Note(errors.New("publish 4000 messages from 01a20611-5f27-7405-b32e-c5e950104ee3 on: no answer")))
		require.True(t, e.Note(errors.New("publish 12 messages: the stream is full")))
		require.False(t, e.Note(errors.New("publish 13 messages: the stream is full")))
		n, _ = e.Over()
		require.Equal(t, 4, n)
	}
}

// A partner that invents a new error each time does not fill the memory, or the log.
func TestErrorsAreBounded(t *testing.T) {
	t.Parallel()
	var e Errors
	told := 0
	for i := range 1000 {
		if e.Note(fmt.Errorf("error %c%c", 'g'+i%20, 'g'+i/20%20)) {
			told++
		}
	}
	require.Equal(t, maxKinds, told)
	n, _ := e.Over()
	require.Equal(t, 1000, n)
}
