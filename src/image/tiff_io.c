/*
 * tiff_io.c - libtiff over our own files and buffers.
 *
 * Owns the callbacks through which libtiff reads, writes and complains.  Knows nothing of pictures.
 * libtiff's close functions return nothing, so a disk that fills up in one of them would go unseen;
 * here the first failed call is latched with its sentence, and everything after it fails too.
 * Nothing is shared between handles: no global handler is installed and nothing is ever printed.
 *
 * Read next: bigtiff.c, the writer; tiff_read.c, the reader.
 */
#include <stdio.h>
#include <string.h>

#include "image/image_int.h"

#if TIFFLIB_VERSION < 20221213
#error "libtiff 4.5 or newer is needed: older ones report errors through global handlers only"
#endif

/* A failure reads as an end of the file, and is remembered: libtiff 4.5 adds up what its reader
 * returns, and clears memory in front of its buffer when that is -1. */
static tmsize_t io_read(thandle_t handle, void *x_out, tmsize_t count)
{
    struct tiff_io *io = handle;
    uint64_t        left = io->at < io->bytes ? io->bytes - io->at : 0;
    uint64_t        take = count < 0 ? 0 : (uint64_t)count < left ? (uint64_t)count : left;

    if (io->fault.code != ERR_OK || take == 0) return 0;
    if (io->data != NULL)
        memcpy(x_out, io->data + io->at, (size_t)take);
    else if (os_read_at(io->fd, io->at, x_out, take, io->name, &io->fault) != ERR_OK)
        return 0;
    io->at += take;
    return (tmsize_t)take;
}

static tmsize_t io_write(thandle_t handle, void *x, tmsize_t count)
{
    struct tiff_io *io = handle;

    if (io->fault.code != ERR_OK || io->data != NULL || count < 0) return -1;
    if (os_write_at(io->fd, io->at, x, (uint64_t)count, io->name, &io->fault) != ERR_OK) return -1;
    io->at += (uint64_t)count;
    if (io->at > io->bytes) io->bytes = io->at;
    return count;
}

static toff_t io_seek(thandle_t handle, toff_t offset, int whence)
{
    struct tiff_io *io = handle;
    uint64_t        base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? io->at : io->bytes;
    uint64_t        at;

    if (!add_u64(base, offset, &at) || at > INT64_MAX) return (toff_t)-1;
    io->at = at;
    return at;
}

static toff_t io_size(thandle_t handle)
{
    const struct tiff_io *io = handle;
    return io->bytes;
}

static int io_close(thandle_t handle)
{
    (void)handle; /* whoever opened the descriptor closes it */
    return 0;
}

/* Pictures are not mapped into libtiff: a codec that reads past its input then does so in a heap
 * block of known size. */
static int io_map(thandle_t handle, void **base, toff_t *size)
{
    (void)handle, (void)base, (void)size;
    return 0;
}

static void io_unmap(thandle_t handle, void *base, toff_t size)
{
    (void)handle, (void)base, (void)size;
}

__attribute__((format(printf, 4, 0))) static int
on_error(TIFF *tiff, void *user, const char *module, const char *format, va_list args)
{
    struct tiff_io *io = user;

    (void)tiff, (void)module;
    if (io->text[0] != '\0') return 1;
    (void)vsnprintf(io->text, sizeof io->text, format, args);
    for (char *c = io->text; *c != '\0'; c++) {
        if (*c == '\n' || *c == '\r') *c = ' ';
    }
    for (size_t n = strlen(io->text); n > 0 && (io->text[n - 1] == '.' || io->text[n - 1] == ' ');
         n--)
        io->text[n - 1] = '\0';
    return 1;
}

__attribute__((format(printf, 4, 0))) static int
on_warning(TIFF *tiff, void *user, const char *module, const char *format, va_list args)
{
    (void)tiff, (void)user, (void)module, (void)format, (void)args;
    return 1;
}

/* `what` begins the sentence of a failure. */
static int open_handle(struct tiff_io *io, const char *mode, uint64_t alloc_max, const char *what,
                       struct err *err)
{
    TIFFOpenOptions *options = TIFFOpenOptionsAlloc();

    if (options == NULL)
        return err_set(err, ERR_HOST_MEM, 0, ERR_WHERE, "memory: none left to open '%s'", io->name);
    TIFFOpenOptionsSetErrorHandlerExtR(options, on_error, io);
    TIFFOpenOptionsSetWarningHandlerExtR(options, on_warning, io);
    if (alloc_max > 0) TIFFOpenOptionsSetMaxSingleMemAlloc(options, (tmsize_t)alloc_max);
    io->tiff = TIFFClientOpenExt(io->name, mode, io, io_read, io_write, io_seek, io_close, io_size,
                                 io_map, io_unmap, options);
    TIFFOpenOptionsFree(options);
    if (io->tiff == NULL) /* a buffer is somebody's draft, a descriptor is a file of ours */
        return tiff_io_error(io, io->data != NULL ? ERR_FORMAT : ERR_IO, what, err);
    return ERR_OK;
}

int tiff_io_open_memory(struct tiff_io *io, const struct source *source, struct err *err)
{
    /* A picture of n bytes has no business with a block far beyond n: a table of 2-byte counts in
     * the file becomes 8-byte ones in memory, and nothing else grows as much. */
    const uint64_t alloc_max = 4 * (uint64_t)source->bytes + (1u << 20);

    *io = (struct tiff_io){
        .name = source->name, .data = source->data, .fd = -1, .bytes = source->bytes};
    return open_handle(io, "r", alloc_max, "cannot read", err);
}

int tiff_io_open_file(struct tiff_io *io, const char *name, int fd, uint64_t bytes, struct err *err)
{
    *io = (struct tiff_io){.name = name, .fd = fd, .bytes = bytes};
    return open_handle(io, "r", 0, "cannot read back", err);
}

int tiff_io_create(struct tiff_io *io, const char *name, int fd, struct err *err)
{
    *io = (struct tiff_io){.name = name, .fd = fd};
    return open_handle(io, "w8", 0, "cannot start", err);
}

int tiff_io_error(const struct tiff_io *io, enum err_code code, const char *what, struct err *err)
{
    if (io->fault.code != ERR_OK) {
        *err = io->fault;
        return (int)io->fault.code;
    }
    return err_set(err, code, 0, ERR_WHERE, "%s '%s': %s", what, io->name,
                   io->text[0] != '\0' ? io->text : "libtiff gave no reason");
}

void tiff_io_abandon(struct tiff_io *io)
{
    /* libtiff flushes its directory when a handle is freed; into a file that is about to be removed
     * that is work for nothing, and on a full disk it would fail again. */
    if (io->tiff != NULL && io->fault.code == ERR_OK)
        (void)err_set(&io->fault, ERR_CANCELLED, 0, ERR_WHERE, "'%s' was given up", io->name);
    tiff_io_close(io);
}

void tiff_io_close(struct tiff_io *io)
{
    if (io->tiff != NULL) TIFFClose(io->tiff);
    io->tiff = NULL;
}
