/*
 * bcryptprimitives.dll for Wine 8, which has none. Rust's standard library takes its random seeds from ProcessPrng
 * there, so that without it no Rust program starts. This one hands on to RtlGenRandom, which advapi32 exports as
 * SystemFunction036 (Microsoft Learn: "RtlGenRandom function", "ProcessPrng"). For tests under Wine alone.
 */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG bytes);

/* RtlGenRandom counts in 32 bits, ProcessPrng in 64. */
#define PIECE_BYTES_MAX ((SIZE_T)1 << 20)

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T bytes)
{
    SIZE_T done = 0;
    while (done < bytes) {
        SIZE_T piece = bytes - done < PIECE_BYTES_MAX ? bytes - done : PIECE_BYTES_MAX;
        if (!SystemFunction036(buffer + done, (ULONG)piece)) {
            return FALSE;
        }
        done += piece;
    }
    return TRUE;
}
