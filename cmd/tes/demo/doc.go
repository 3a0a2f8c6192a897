// Package demo runs a handful of tasks through a whole tes and compares each task with an
// expectation. The demo is an end-to-end test for a new user: real PostgreSQL, real bus, fake peer
// services.
//
// # Overview
//
// definitions.json holds the task definitions. requests.json holds the requests, each with the
// status, output, assignee or error code that the task must reach.
//
//	subscribe ──▶ register ──▶ submit ──▶ follow ──────────────────▶ table
//	to the bus    definitions  requests   until the expected status
//	    │                                 manual tasks: complete in
//	    └──▶ prints every event           the assignee's name
//
// The API is authoritative for the state of a task, and the bus for its events: a task needs the
// expected status and exactly one terminal event.
//
// The package starts no part itself: package main hands in a function that starts PostgreSQL,
// the bus, the service and the fake peer services.
//
// # Failure Handling
//
//   - An expectation is not met: the row says WRONG with the reason, the other tasks go on, and Run
//     returns an error.
//   - One integration call fails on purpose, so that the demo shows a retry. Only this failure is
//     expected.
//   - A minute passes (timeLimit): tasks that are not done are WRONG.
//   - Ctrl-C, or an error: all parts are stopped and the directory is removed.
package demo
