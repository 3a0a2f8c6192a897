// Package callback posts status updates to the callbackUrl of tasks.
package callback
